//! Objects of Kubernetes that checks make by hand.

use serde_json::{Value, json};

const MODES: [&str; 1] = ["ReadWriteOnce"];

fn size() -> Value {
    json!({"storage": "16Mi"})
}

/// A claim, bound to a persistent volume if one is named.
pub(crate) fn claim(namespace: &str, name: &str, volume: Option<&str>) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": MODES, "resources": {"requests": size()},
            "storageClassName": "", "volumeName": volume}})
}

/// A persistent volume of a driver, bound to a claim by its reference.
pub(crate) fn volume(name: &str, claim: &Value, driver: &str, handle: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"accessModes": MODES, "capacity": size(), "claimRef": claim,
            "csi": {"driver": driver, "volumeHandle": handle}}})
}

/// What a pod says of the claims that it uses.
pub(crate) fn uses(claims: &[&str]) -> Vec<Value> {
    let volume =
        |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
    claims.iter().map(volume).collect()
}
