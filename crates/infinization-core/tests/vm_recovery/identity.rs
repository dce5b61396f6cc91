//! A process that cannot be proven ours is not touched.

use infinization_core::ErrorCode;

use super::*;

#[test]
fn what_cannot_be_told_ours_is_neither_ended_nor_cleaned_up() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "whose-1").await;
        // As if we had been killed between the spawn and the ledger, and the disk had eaten the spec.
        rewrite(&host, "whose-1", |ledger| {
            ledger["lived"] = Value::Null;
            ledger["operation"] = json!("start");
        });
        let spec = host.state_dir().join("vms/whose-1/spec.json");
        let good = std::fs::read(&spec).unwrap();
        std::fs::write(&spec, b"{ torn").unwrap();
        let before = host.files();

        let (next, mut events) = next_manager(&host).await;
        let start = next.start_vm("whose-1".into(), Value::Null, never()).await;
        let stop = next.stop_vm("whose-1".into(), forced(), never()).await;
        let destroy = next.destroy_vm("whose-1".into()).await;
        for (answer, code) in [
            (start, ErrorCode::StartFailed),
            (stop, ErrorCode::StopFailed),
            (destroy, ErrorCode::StopFailed),
        ] {
            let failure = answer.unwrap_err();
            assert_eq!(failure.code(), code, "{failure:?}");
            assert!(failure.has(ErrorCode::IdentityUnknown), "{failure:?}");
            assert_eq!(failure.vm_id().unwrap().as_str(), "whose-1");
        }
        next.check_all_vms().await.unwrap();
        assert_eq!(told(&mut events, "crash"), 0);
        assert!(is_alive(pid));
        assert_eq!(host.files(), before);
        assert_eq!(
            next.get_vm("whose-1".into()).await.unwrap()["status"],
            "running"
        );

        std::fs::write(&spec, good).unwrap();
        delete(&next, "whose-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f11_after_a_reboot_no_process_is_signalled() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "boot-1").await;
        forge(&host, "boot-1", |process| {
            process["bootId"] = json!("01234567-89ab-cdef-0123-456789abcdef");
        });
        let (next, mut events) = next_manager(&host).await;
        let status = consistent_status(&next, "boot-1").await;
        assert_eq!(status["status"], "off");
        assert_eq!(status["lastExit"]["reason"], "host-reboot");
        assert_eq!(told(&mut events, "crash"), 0, "a reboot is no crash");
        assert!(is_alive(pid), "the process of that number was left alone");
        // What runs under the machine's name is not ours by proof: no second one is started.
        let failure = next
            .start_vm("boot-1".into(), Value::Null, never())
            .await
            .unwrap_err();
        assert!(failure.has(ErrorCode::ResourceUnavailable), "{failure:?}");
        assert!(is_alive(pid));
        send_signal(pid, Signal::SIGKILL);
        ends(pid).await;
        next.start_vm("boot-1".into(), Value::Null, never())
            .await
            .unwrap();
        delete(&next, "boot-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f12_a_process_that_started_at_another_time_is_not_touched() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "time-1").await;
        forge(&host, "time-1", |process| {
            process["startTime"] = json!(process["startTime"].as_u64().unwrap() + 1);
        });
        let (next, mut events) = next_manager(&host).await;
        assert_eq!(consistent_status(&next, "time-1").await["status"], "off");
        next_event(&mut events, "crash").await;
        assert!(is_alive(pid));
        send_signal(pid, Signal::SIGKILL);
        ends(pid).await;
        delete(&next, "time-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f12_an_innocent_process_with_the_number_is_not_touched() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let pid = left_running(&host, "num-1").await;
        send_signal(pid, Signal::SIGKILL);
        ends(pid).await;
        let mut innocent = Command::new("sleep").arg("600").spawn().unwrap();
        let number = i32::try_from(innocent.id()).unwrap();
        forge(&host, "num-1", |process| process["pid"] = json!(number));
        let (next, _events) = next_manager(&host).await;
        assert_eq!(consistent_status(&next, "num-1").await["status"], "off");
        next.stop_vm("num-1".into(), forced(), never())
            .await
            .unwrap();
        delete(&next, "num-1").await;
        assert!(innocent.try_wait().unwrap().is_none(), "it still runs");
        innocent.kill().unwrap();
        innocent.wait().unwrap();
        host.is_clean().await;
    });
}
