//! The brokers as Kubernetes gets them: a stateful set, and a service for each, whose address stays
//! when its broker moves.

use serde_json::{Value, json};

/// How many there are. Each is also a controller of Kafka, so that two are a majority.
pub(crate) const BROKERS: usize = 3;
/// What the stateful set is called.
pub(crate) const NAME: &str = "kafka";
/// What `tests/kube/brokers/programs` calls the image.
const IMAGE: &str = "localhost/lockstep-broker:1";
/// The id of the Kafka cluster.
const CLUSTER: &str = "bG9ja3N0ZXAtdGVzdHMtMQ";

/// Where brokers have their logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A volume of ours with three copies, of so many MiB.
    Volume(u64),
    /// A directory of the node, which is gone for the pod when the node is.
    Node,
}

/// The address of a broker's service. Each round has its own, since addresses are given back late.
pub(crate) fn address(round: usize, broker: usize) -> String {
    format!("10.96.{}.1{broker}", 100 + round)
}

/// Where clients find them all.
pub(crate) fn servers(round: usize) -> String {
    let each = (0..BROKERS).map(|broker| format!("{}:9092", address(round, broker)));
    each.collect::<Vec<_>>().join(",")
}

/// What a broker's pod is called.
pub(crate) fn pod(broker: usize) -> String {
    format!("{NAME}-{broker}")
}

/// What the claim of a broker is called.
pub(crate) fn claim(broker: usize) -> String {
    format!("data-{}", pod(broker))
}

/// All objects of a round.
pub(crate) fn objects(space: &str, round: usize, disk: Disk) -> Value {
    let mut items = vec![stateful_set(space, round, disk)];
    items.extend((0..BROKERS).map(|broker| service(space, round, broker)));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn service(space: &str, round: usize, broker: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": space, "name": pod(broker)},
        "spec": {
            "clusterIP": address(round, broker),
            "selector": {"statefulset.kubernetes.io/pod-name": pod(broker)},
            "publishNotReadyAddresses": true,
            "ports": [
                {"name": "broker", "port": 9092},
                {"name": "controller", "port": 9093},
            ],
        },
    })
}

fn stateful_set(space: &str, round: usize, disk: Disk) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 0,
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {
                "labelSelector": {"matchLabels": {"app": NAME}},
                "topologyKey": "kubernetes.io/hostname",
            },
        }]}},
        "containers": [container(round)],
    });
    let mut claims = Vec::new();
    match disk {
        Disk::Node => spec["volumes"] = json!([{"name": "data", "emptyDir": {}}]),
        Disk::Volume(mib) => claims.push(json!({
            "metadata": {"name": "data"},
            "spec": {
                "accessModes": ["ReadWriteOncePod"],
                "storageClassName": "lockstep-3",
                "resources": {"requests": {"storage": format!("{mib}Mi")}},
            },
        })),
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"namespace": space, "name": NAME},
        "spec": {
            "serviceName": NAME,
            "replicas": BROKERS,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": NAME}},
            "template": {"metadata": {"labels": {"app": NAME}}, "spec": spec},
            "volumeClaimTemplates": claims,
        },
    })
}

fn container(round: usize) -> Value {
    let index = json!({"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"});
    json!({
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": arguments(round),
        "env": [{"name": "INDEX", "valueFrom": {"fieldRef": index}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    })
}

/// What the image's Java is given.
fn arguments(round: usize) -> Vec<String> {
    let voters = (0..BROKERS).map(|broker| format!("{broker}@{}:9093", address(round, broker)));
    let voters = voters.collect::<Vec<_>>().join(",");
    // Kubernetes puts the number of the pod here.
    let own = format!("10.96.{}.1$(INDEX)", 100 + round);
    let fixed = [
        "-Xmx256m",
        "-XX:+UseSerialGC",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-cp",
        "/app/classes:/app/jars/*",
        "Broker",
        CLUSTER,
        "process.roles=broker,controller",
        "node.id=$(INDEX)",
        "controller.listener.names=CONTROLLER",
        "inter.broker.listener.name=BROKER",
        "listeners=BROKER://:9092,CONTROLLER://:9093",
        "listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "offsets.topic.replication.factor=3",
        // Until then Kafka does not let the successor of a broker in. By itself it waits for 9 s.
        "broker.session.timeout.ms=6000",
        "broker.heartbeat.interval.ms=1000",
        // Not where the file system has its own directory of things lost.
        "log.dirs=/data/log",
    ];
    let mut all: Vec<String> = fixed.iter().map(|word| (*word).to_owned()).collect();
    all.push(format!("controller.quorum.voters={voters}"));
    all.push(format!("advertised.listeners=BROKER://{own}:9092,CONTROLLER://{own}:9093"));
    all
}
