use infinization_core::ErrorCode;
use infinization_core::error::Coded as _;
use infinization_core::qmp::{FreezeStatus, GuestAgent, MonitorEvent};
use serde_json::Value;
use tokio::time::timeout;

use super::ext4::Ext4;
use super::guest::WritingGuest;
use super::kit;
use super::kit::machine::{Host, PATIENCE};

async fn told(agent: &GuestAgent, command: &str) -> Value {
    let answer = agent.execute(command, ()).await.unwrap();
    serde_json::from_str(answer.get()).unwrap()
}

#[test]
fn a_real_agent_answers_and_freezes_a_real_file_system() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let guest = WritingGuest::boot(&host, "writing-agent").await;
        let agent = guest.agent().await;
        agent.ping().await.unwrap();
        let system = told(&agent, "guest-get-osinfo").await;
        assert_eq!(system["name"], "tiny", "{system}");
        let nics = told(&agent, "guest-network-get-interfaces").await;
        let address = Host::address_of(guest.vm).to_string();
        assert!(nics.to_string().contains(&address), "{nics}");

        assert_eq!(agent.fs_freeze(PATIENCE).await.unwrap(), 1);
        assert_eq!(agent.fs_status().await.unwrap(), FreezeStatus::Frozen);
        Ext4::of(&guest.disk().await).was_frozen();
        let ran = agent.exec("true", &[], PATIENCE).await.unwrap_err();
        assert_eq!(ran.code(), ErrorCode::AgentCommandFailed, "{ran}");
        assert_eq!(agent.fs_thaw().await.unwrap(), 1);
        assert_eq!(agent.fs_status().await.unwrap(), FreezeStatus::Thawed);
        agent.close().await;
        guest.writes_on().await;
        dies_while_frozen(&guest).await;
        guest.end().await;
    });
}

/// F39: whoever freezes it has to thaw it, even if the agent was another by then.
async fn dies_while_frozen(guest: &WritingGuest<'_>) {
    let script = "(while [ ! -e /run/qga.state.isfrozen ]; do usleep 50000; done; sleep 1; \
                  kill -9 $(pidof qemu-ga)) >/dev/null 2>&1 &";
    guest.says(script).await.unwrap();
    let monitor = guest.manager.qmp_client(guest.vm).unwrap();
    let mut events = monitor.subscribe();
    let agent = guest.agent().await;
    assert_eq!(agent.fs_freeze(PATIENCE).await.unwrap(), 1);
    let died = async {
        loop {
            let MonitorEvent::Event(event) = events.next().await.unwrap() else {
                continue;
            };
            let data: Value = serde_json::from_str(event.data.get()).unwrap();
            if event.event == "VSERPORT_CHANGE" && data["open"] == false {
                return;
            }
        }
    };
    timeout(PATIENCE, died).await.unwrap();
    assert_eq!(agent.fs_thaw().await.unwrap(), 1);
    assert_eq!(agent.fs_status().await.unwrap(), FreezeStatus::Thawed);
    agent.close().await;
    guest.writes_on().await;
}
