//! A node of the cluster: network, mount, PID and UTS namespaces of its own, in which containerd, a
//! kubelet, and our programs run. Its disk is a directory; what is in /run and in memory ends with
//! its power.

use super::images::run;
use super::{cgroups, loops};
use crate::cluster::{ADDRESS, Cluster, User};
use crate::process::{Process, wait_for};
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// How long a program of a node may take to begin.
pub(crate) const BEGINNING: Duration = Duration::from_secs(120);
/// How much a node's pool can hold; it takes what is written.
const POOL_BYTES: u64 = 16 << 30;
const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Makes a node's own file systems in its new namespaces, and stays as its first process, which has
/// to take leave of every other one that ends.
const HOLD: &str = r#"
name=$1 dir=$2
hostname "$name"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
mount --bind "$dir/lib" /var/lib
mount --bind "$dir/log" /var/log
if [ -f /etc/resolv.conf ]; then mount --bind "$dir/resolv.conf" /etc/resolv.conf; fi
mount -o loop,discard "$dir/pool.img" /var/lib/lockstep
mount --make-rshared /
echo 1 >/proc/sys/net/ipv4/ip_forward
: >/run/held
exec bash -c 'while :; do sleep 3600 & wait $!; done'
"#;

/// Starts a program again when it ends, as the supervisor of a machine would.
const AGAIN: &str = r#"while :; do "$0" "$@"; sleep 1; done"#;

/// A node. It loses its power when this is dropped.
#[derive(Debug)]
pub(crate) struct Node {
    number: usize,
    dir: PathBuf,
    /// Where all programs are looked for.
    path: PathBuf,
    kubelet_config: PathBuf,
    holder: Process,
    programs: BTreeMap<&'static str, Process>,
    /// How long the logs of programs were when it booted.
    logged: BTreeMap<&'static str, usize>,
}

impl Node {
    /// Makes its disk. `dir` is that of the cluster.
    pub(crate) async fn make(cluster: &Cluster, number: usize) -> anyhow::Result<Self> {
        let dir = cluster.dir().join(format!("n{number}"));
        for name in ["lib/kubelet", "lib/lockstep", "log/pods", "cni"] {
            fs::create_dir_all(dir.join(name))?;
        }
        fs::write(dir.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        fs::write(dir.join("cni/10-bridge.conflist"), pod_network(number).to_string())?;
        let cni = dir.join("cni").display().to_string();
        fs::write(dir.join("containerd.toml"), CONTAINERD_CONFIG.replace("CNI", &cni))?;
        let disk = dir.join("pool.img");
        fs::File::create(&disk)?.set_len(POOL_BYTES)?;
        run(Command::new("mkfs.xfs").arg("-q").arg(&disk)).await?;
        let name = format!("n{number}");
        let flags: [&[&str]; 2] = [
            &["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"],
            &["--mount-proc", "--propagation", "slave", "--", "sh", "-euc", HOLD, "hold", &name],
        ];
        let mut flags: Vec<String> = flags.concat().into_iter().map(str::to_owned).collect();
        flags.push(dir.display().to_string());
        let path = PathBuf::from(format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            cluster.programs().display()
        ));
        let holder = Process::new("unshare".into(), flags, dir.join("node.log"));
        let mut node = Self {
            number,
            kubelet_config: dir.join("kubelet.json"),
            holder: holder.with("PATH", &path),
            path,
            dir,
            programs: BTreeMap::new(),
            logged: BTreeMap::new(),
        };
        let config = node.own("containerd.toml");
        node.add("containerd", Path::new("containerd"), &["--config", &config], None);
        node.add_kubelet(cluster);
        Ok(node)
    }

    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Its address, by its number.
    pub(crate) fn address(number: usize) -> String {
        format!("10.77.0.{}", 10 + number)
    }

    /// A file of its disk.
    fn own(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Where a file that it sees is found from outside, while it lives: also what is in its /run.
    pub(crate) fn seen(&self, path: &str) -> Option<PathBuf> {
        Some(PathBuf::from(format!("/proc/{}/root{path}", self.init()?)))
    }

    /// Where a file below its /var/log is, also when it is dead.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Its first process.
    fn init(&self) -> Option<u32> {
        self.holder.children().first().copied()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.init().is_some()
    }

    /// Adds a program that runs on it whenever it is up. KUBECONFIG is that of the user.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        file: &Path,
        flags: &[&str],
        user: Option<&Path>,
    ) {
        let mut words = vec!["-uc".to_owned(), AGAIN.to_owned(), file.display().to_string()];
        words.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let log = self.dir.join(format!("{name}.log"));
        let mut program = Process::new("sh".into(), words, log).with("PATH", &self.path);
        if let Some(user) = user {
            program = program.with("KUBECONFIG", user);
        }
        self.programs.insert(name, program);
    }

    fn add_kubelet(&mut self, cluster: &Cluster) {
        let config = self.kubelet_config.display().to_string();
        let kubeconfig = cluster.kubeconfig(User::Node(self.number)).display().to_string();
        let flags: [&[&str]; 2] = [
            &["--config", &config, "--kubeconfig", &kubeconfig],
            &["--hostname-override", &self.name(), "--node-ip", &Self::address(self.number)],
        ];
        self.add("kubelet", Path::new("kubelet"), &flags.concat(), None);
        let admin = cluster.kubeconfig(User::Admin).display().to_string();
        let flags: [&[&str]; 4] = [
            &["--proxy-mode=nftables", "--kubeconfig", &admin, "--cluster-cidr=10.78.0.0/16"],
            &["--hostname-override", &self.name(), "--conntrack-max-per-core=0"],
            &["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"],
            &["--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249"],
        ];
        self.add("kube-proxy", Path::new("kube-proxy"), &flags.concat(), None);
    }

    /// Gives it power: everything that was added starts.
    pub(crate) async fn boot(&mut self, cgroups: &cgroups::Root) -> anyhow::Result<()> {
        let group = cgroups.make(&self.name())?;
        fs::write(&self.kubelet_config, kubelet_config(self.number, &group).to_string())?;
        self.holder.start(&[])?;
        let held = async || self.seen("/run/held").is_some_and(|file| file.exists());
        ensure!(wait_for(BEGINNING, held).await, "{} does not begin: {}", self.name(), self.told());
        self.connect().await?;
        let names: Vec<&'static str> = self.programs.keys().copied().collect();
        for name in names {
            self.logged.insert(name, self.log(name).len());
            self.start(name)?;
        }
        Ok(())
    }

    /// Whether one of its programs has said something since it booted.
    pub(crate) fn has_said(&self, name: &str, words: &str) -> bool {
        let before = self.logged.get(name).copied().unwrap_or_default();
        self.log(name).get(before..).is_some_and(|log| log.contains(words))
    }

    /// How often its kubelet has found the driver.
    pub(crate) fn registrations(&self) -> usize {
        self.log("csi-node-driver-registrar").matches("the kubelet has registered").count()
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.own(&format!("{name}.log"))).unwrap_or_default()
    }

    fn told(&self) -> String {
        fs::read_to_string(self.dir.join("node.log")).unwrap_or_default()
    }

    /// Makes its link to the others.
    async fn connect(&self) -> anyhow::Result<()> {
        let (number, link) = (self.number, self.link());
        let init = self.init().context("it ended")?.to_string();
        let add = ["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &init];
        run(Command::new("ip").args(add)).await?;
        run(Command::new("ip").args(["link", "set", &link, "master", "nodes", "up"])).await?;
        let pods = format!("ip route replace 10.78.{number}.0/24 via {}", Self::address(number));
        run(Command::new("sh").args(["-euc", &pods])).await?;
        let mut script = format!(
            "ip link set lo up; ip address add {}/16 dev eth0; ip link set eth0 up; \
             ip route add default via {ADDRESS}; ",
            Self::address(number)
        );
        for other in (1..=crate::cluster::MAX_NODES).filter(|other| *other != number) {
            let via = Self::address(other);
            script.push_str(&format!("ip route add 10.78.{other}.0/24 via {via}; "));
        }
        self.run(&["sh", "-euc", &script]).await.map(drop)
    }

    fn link(&self) -> String {
        format!("to-{}", self.name())
    }

    /// What it takes to run something inside of it.
    fn inside(&self) -> anyhow::Result<Vec<String>> {
        let init = self.init().with_context(|| format!("{} is down", self.name()))?;
        let flags =
            ["-t", &init.to_string(), "-m", "-n", "-u", "-i", "-p", "--"].map(str::to_owned);
        Ok(flags.to_vec())
    }

    /// Runs a command inside of it.
    pub(crate) async fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        run(command.args(self.inside()?).args(words).env("PATH", &self.path)).await
    }

    /// Starts one of its programs.
    pub(crate) fn start(&mut self, name: &str) -> anyhow::Result<()> {
        let inside = self.inside()?;
        let program = self.programs.get_mut(name).with_context(|| format!("no program {name}"))?;
        program.start_in("nsenter", &inside)
    }

    /// Kills one of its programs.
    pub(crate) async fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let program = self.programs.get_mut(name).with_context(|| format!("no program {name}"))?;
        program.kill_inner().await
    }

    /// Waits until containerd serves, and gives it images.
    pub(crate) async fn import(&self, images: &[PathBuf]) -> anyhow::Result<()> {
        let serves = async || self.run(&["ctr", "-a", CONTAINERD, "version"]).await.is_ok();
        let log = self.dir.join("containerd.log");
        ensure!(wait_for(BEGINNING, serves).await, "no containerd; see {}", log.display());
        for image in images {
            let image = image.display().to_string();
            let flags = ["ctr", "-a", CONTAINERD, "-n", "k8s.io", "images", "import", &image];
            self.run(&flags).await?;
        }
        Ok(())
    }

    /// Its power is gone: nothing it would have said on its end is heard by anybody.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(init) = self.init() else { return Ok(()) };
        let bound = loops::of(init).await;
        run(Command::new("ip").args(["link", "delete", &self.link()])).await?;
        self.holder.kill_inner().await?;
        for program in self.programs.values_mut() {
            program.kill().await?;
        }
        loops::give_back(&bound).await
    }

    /// Its network is gone, but it lives.
    pub(crate) async fn cut(&self) -> anyhow::Result<()> {
        run(Command::new("ip").args(["link", "set", &self.link(), "down"])).await.map(drop)
    }

    /// Its network is back.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        run(Command::new("ip").args(["link", "set", &self.link(), "up"])).await.map(drop)
    }
}

const CONTAINERD_CONFIG: &str = r#"
version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  # Machines that run tests may withhold CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "CNI"
"#;

fn pod_network(number: usize) -> serde_json::Value {
    let subnet = format!("10.78.{number}.0/24");
    serde_json::json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{
        "type": "bridge",
        "bridge": "pods",
        "isGateway": true,
        "hairpinMode": true,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni-addresses",
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }]})
}

fn kubelet_config(number: usize, group: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": Node::address(number),
        "failCgroupV1": false,
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": group,
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": ["pods"],
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "makeIPTablesUtilChains": false,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "10s",
        "nodeLeaseDurationSeconds": 4,
        "syncFrequency": "5s",
        "volumeStatsAggPeriod": "5s",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
        "clusterDNS": [],
        "resolvConf": "",
    })
}
