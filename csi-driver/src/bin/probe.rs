//! `lockstep-csi-probe`: asks a driver whether it is ready, for the probes of a kubelet. Ends with
//! 0 if it is, else with 1 and why.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use lockstep_proto::csi::ProbeRequest;
use lockstep_proto::csi::identity_client::IdentityClient;
use tonic::transport::Endpoint;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(4);

/// Asks a CSI driver whether it is ready.
#[derive(Debug, Parser)]
#[command(name = "lockstep-csi-probe", version)]
struct Args {
    /// Where it serves, as unix:///path/to/csi.sock
    #[arg(long, env = "CSI_ENDPOINT")]
    endpoint: String,
}

#[expect(clippy::print_stderr, reason = "it is a program")]
fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(ask(&args.endpoint)));
    match asked {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why:#}");
            ExitCode::FAILURE
        }
    }
}

async fn ask(endpoint: &str) -> anyhow::Result<()> {
    let probe = async {
        let channel = Endpoint::from_shared(endpoint.to_owned())?.connect().await?;
        Ok::<_, anyhow::Error>(IdentityClient::new(channel).probe(ProbeRequest {}).await?)
    };
    let answer = tokio::time::timeout(LIMIT, probe).await;
    let answer = answer.with_context(|| format!("{endpoint} does not answer"))?;
    let answer = answer.with_context(|| format!("asking {endpoint}"))?.into_inner();
    ensure!(answer.ready != Some(false), "{endpoint} is not ready; its log says why");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_answer_is_not_ready() {
        let refused = ask("unix:///no/such/socket").await.unwrap_err();
        assert!(refused.to_string().contains("unix:///no/such/socket"), "{refused:#}");
        assert!(ask("not an endpoint").await.is_err());
    }
}
