//! etcd and an API server, and what reaches them.

use crate::process::{Process, wait_a_moment};
use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lockstep_meta::kubernetes::{Kubernetes, careful};
use lockstep_meta::remote::Deadlines;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How long the API server may take to begin.
const BEGINNING: Duration = Duration::from_secs(180);
/// Where nodes reach it: `tests/kube/run` gives this address to the bridge that they are at.
pub(crate) const ADDRESS: &str = "10.77.0.1";
const SERVER: &str = "https://10.77.0.1:6443";
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";

/// Long enough for a busy machine: what takes longer is lost.
pub(crate) const PATIENT: Deadlines =
    Deadlines { connect: Duration::from_secs(5), request: Duration::from_secs(30) };

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// May do all, and is never throttled.
    Admin,
    /// May do what the daemon needs.
    Lockstep,
    ControllerManager,
    Scheduler,
    /// The kubelet of a node, by its number.
    Node(usize),
}

/// Most nodes that there can be.
pub(crate) const MAX_NODES: usize = 9;

impl User {
    fn all() -> impl Iterator<Item = Self> {
        let some = [Self::Admin, Self::Lockstep, Self::ControllerManager, Self::Scheduler];
        some.into_iter().chain((1..=MAX_NODES).map(Self::Node))
    }

    fn name(self) -> String {
        match self {
            Self::Admin => "admin".to_owned(),
            Self::Lockstep => "lockstep".to_owned(),
            Self::ControllerManager => "system:kube-controller-manager".to_owned(),
            Self::Scheduler => "system:kube-scheduler".to_owned(),
            Self::Node(number) => format!("system:node:n{number}"),
        }
    }

    fn group(self) -> Option<&'static str> {
        match self {
            Self::Admin => Some("system:masters"),
            Self::Node(_) => Some("system:nodes"),
            _ => None,
        }
    }

    fn token(self) -> String {
        format!("{}-token", self.name().replace(':', "-"))
    }
}

/// The control plane of Kubernetes, without what needs nodes. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
    programs: PathBuf,
    etcd: Process,
    api: Process,
}

impl Cluster {
    /// Starts it with its files in `dir`, and waits until it serves.
    pub(crate) async fn start(dir: &Path, programs: &Path) -> anyhow::Result<Self> {
        prepare(dir).await?;
        let (dir, programs) = (dir.to_owned(), programs.to_owned());
        let etcd = Process::new(programs.join("etcd"), etcd_flags(&dir), dir.join("etcd.log"));
        let api_flags = api_flags(&dir);
        let api = Process::new(programs.join("kube-apiserver"), api_flags, dir.join("api.log"));
        let mut cluster = Self { dir, programs, etcd, api };
        cluster.start_etcd()?;
        cluster.start_api(&[]).await?;
        Ok(cluster)
    }

    /// Where the programs of Kubernetes are.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// What asks it as the administrator.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::try_from(self.config(User::Admin, PATIENT).await?)?)
    }

    /// A file by which somebody with this token reaches it.
    pub(crate) fn kubeconfig_with(&self, name: &str, token: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(format!("{name}.kubeconfig"));
        fs::write(&path, kubeconfig_of(&self.dir, token).to_string())?;
        Ok(path)
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn start_etcd(&mut self) -> anyhow::Result<()> {
        self.etcd.start(&[])
    }

    /// Starts the API server and waits until it serves.
    pub(crate) async fn start_api(&mut self, more: &[&str]) -> anyhow::Result<()> {
        self.api.start(more)?;
        let begin = Instant::now();
        while !self.is_ready().await {
            let log = self.dir.join("api.log");
            ensure!(
                begin.elapsed() < BEGINNING && self.api.is_running(),
                "the API server does not serve; see {}",
                log.display()
            );
            wait_a_moment().await;
        }
        Ok(())
    }

    pub(crate) async fn kill_etcd(&mut self) -> anyhow::Result<()> {
        self.etcd.kill().await
    }

    pub(crate) async fn kill_api(&mut self) -> anyhow::Result<()> {
        self.api.kill().await
    }

    /// Kills both, starts both.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill_api().await?;
        self.kill_etcd().await?;
        self.start_etcd()?;
        self.start_api(&[]).await
    }

    async fn is_ready(&self) -> bool {
        self.raw("/readyz").await.is_ok_and(|said| said == "ok")
    }

    /// What the API server says at a path.
    pub(crate) async fn raw(&self, path: &str) -> anyhow::Result<String> {
        let client = self.client().await?;
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(client.request_text(request).await?)
    }

    /// How a user reaches it.
    pub(crate) async fn config(&self, user: User, deadlines: Deadlines) -> anyhow::Result<Config> {
        let file = self.kubeconfig(user);
        let file = Kubeconfig::read_from(&file).context("reading a kubeconfig")?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(careful(config, deadlines))
    }

    /// The file that says so.
    pub(crate) fn kubeconfig(&self, user: User) -> PathBuf {
        kubeconfig(&self.dir, user)
    }

    /// A record store in a namespace.
    pub(crate) async fn store(
        &self,
        user: User,
        namespace: &str,
        deadlines: Deadlines,
    ) -> anyhow::Result<Kubernetes> {
        let config = self.config(user, deadlines).await?;
        Ok(Kubernetes::new(config, Some(namespace), deadlines)?)
    }

    /// Makes a namespace.
    pub(crate) async fn make_namespace(&self, name: &str) -> anyhow::Result<()> {
        let client = self.client().await?;
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        Api::all(client).create(&PostParams::default(), &namespace).await?;
        Ok(())
    }

    /// Lets [`User::Lockstep`] do in a namespace what the daemon and the controller do.
    pub(crate) async fn grant(&self, namespace: &str) -> anyhow::Result<()> {
        for role in ["lockstep-records", "lockstep-namespace"] {
            let of = format!("--clusterrole={role}");
            let flags = ["-n", namespace, "create", "rolebinding", role, &of, "--user=lockstep"];
            self.kubectl(&flags, "").await?;
        }
        Ok(())
    }

    /// Runs kubectl as the administrator, with something on its standard input.
    pub(crate) async fn kubectl(&self, flags: &[&str], input: &str) -> anyhow::Result<String> {
        self.kubectl_as(&self.kubeconfig(User::Admin), flags, input).await
    }

    /// Runs kubectl as somebody.
    pub(crate) async fn kubectl_as(
        &self,
        kubeconfig: &Path,
        flags: &[&str],
        input: &str,
    ) -> anyhow::Result<String> {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(kubeconfig).args(flags);
        command.env("HOME", &self.dir).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has a standard input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", flags.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes what is in a manifest, and waits until the API server knows our kinds of objects.
    pub(crate) async fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        self.kubectl(&["apply", "--server-side", "-f", "-"], manifest).await?;
        let wait = ["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"];
        self.kubectl(&wait, "").await?;
        Ok(())
    }
}

/// Writes the files that the API server and its users need.
async fn prepare(dir: &Path) -> anyhow::Result<()> {
    let tokens = User::all().enumerate().map(|(number, user)| {
        let (token, name) = (user.token(), user.name());
        let group = user.group().map(|group| format!(",\"{group}\"")).unwrap_or_default();
        format!("{token},{name},{number}{group}\n")
    });
    fs::write(dir.join("tokens.csv"), tokens.collect::<String>())?;
    for user in User::all() {
        fs::write(kubeconfig(dir, user), kubeconfig_of(dir, &user.token()).to_string())?;
    }
    let (private, public) = (dir.join("accounts.key"), dir.join("accounts.pub"));
    let (private, public) = (private.to_string_lossy(), public.to_string_lossy());
    let kind = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    openssl(&[&["genpkey", "-out", &private], &kind[..]].concat()).await?;
    openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]).await?;
    make_certificate(dir).await
}

/// The API server's certificate, which whoever asks it trusts.
pub(crate) fn certificate(dir: &Path) -> PathBuf {
    dir.join("certs/apiserver.crt")
}

async fn make_certificate(dir: &Path) -> anyhow::Result<()> {
    let file = certificate(dir);
    fs::create_dir_all(dir.join("certs"))?;
    let (key, file) = (file.with_extension("key"), file.to_string_lossy());
    let names = format!(
        "subjectAltName=IP:127.0.0.1,IP:{ADDRESS},IP:10.96.0.1,DNS:localhost,DNS:kubernetes,\
         DNS:kubernetes.default,DNS:kubernetes.default.svc"
    );
    let kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"];
    let about = ["-subj", "/CN=kube-apiserver", "-addext", &names];
    let more = ["-addext", "basicConstraints=critical,CA:FALSE", "-out", &file, "-keyout"];
    let key = key.to_string_lossy();
    openssl(&[&["req", "-x509"], &kind[..], &about[..], &more[..], &[&key]].concat()).await
}

fn kubeconfig_of(dir: &Path, token: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": SERVER,
            "certificate-authority": certificate(dir),
        }}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
}

async fn openssl(flags: &[&str]) -> anyhow::Result<()> {
    let made = Command::new("openssl").args(flags).output().await.context("running openssl")?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

fn kubeconfig(dir: &Path, user: User) -> PathBuf {
    dir.join(format!("{}.kubeconfig", user.name().replace(':', "-")))
}

fn etcd_flags(dir: &Path) -> Vec<String> {
    let data = dir.join("etcd");
    vec![
        format!("--data-dir={}", data.display()),
        // Processes are killed here, never the machine.
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={ETCD_PEER}"),
        format!("--initial-advertise-peer-urls={ETCD_PEER}"),
        format!("--initial-cluster=default={ETCD_PEER}"),
    ]
}

fn api_flags(dir: &Path) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--etcd-servers={ETCD}"),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={ADDRESS}"),
        "--secure-port=6443".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        format!("--cert-dir={}", file("certs")),
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
    ]
}
