use infinization_core::ErrorCode;
use infinization_core::error::Coded as _;
use infinization_core::qmp::{FreezeStatus, GuestAgent, MonitorEvent};
use serde_json::{Value, json};
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
fn f39_a_real_agent_freezes_a_real_file_system_and_may_die_of_it() {
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
        dies_while_it_freezes(&guest).await;
        guest.end().await;
    });
}

/// F39: whoever freezes a guest has to thaw it, even if the agent was another by then.
async fn dies_while_frozen(guest: &WritingGuest<'_>) {
    dies_once_frozen(guest, "sleep 1").await;
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

/// F39: as it freezes, before or after it says so. A snapshot is made of a guest that stood still, or none.
async fn dies_while_it_freezes(guest: &WritingGuest<'_>) {
    dies_once_frozen(guest, "true").await;
    let quiet = json!({ "name": "quiet", "quiesce": true, "freezeTimeout": 5000 });
    let taken = guest.take(quiet).await;
    assert!(!guest.note().exists(), "{taken:?}");
    guest.writes_on().await;
    let listed = guest.manager.list_snapshots(guest.vm.into()).await.unwrap();
    match taken {
        Ok(_) => Ext4::of_snapshot(&guest.disk().await, "quiet").was_frozen(),
        Err(failure) => {
            assert!(failure.has(ErrorCode::AgentTimeout), "{failure:?}");
            assert_eq!(listed, json!([]));
        }
    }
}

/// Has the agent killed in the guest so long after it has begun to freeze. The guest starts another.
async fn dies_once_frozen(guest: &WritingGuest<'_>, pause: &str) {
    let script = format!(
        "(while [ ! -e /run/qga.state.isfrozen ]; do usleep 20000; done; {pause}; \
         kill -9 $(pidof qemu-ga)) >/dev/null 2>&1 &"
    );
    guest.says(&script).await.unwrap();
}
