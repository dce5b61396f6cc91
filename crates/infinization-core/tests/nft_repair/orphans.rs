//! Chains of no machine are told, and left to whoever knows better.

use super::*;

#[test]
fn p4_chains_of_no_machine_are_told_and_left_alone() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let id = "net-kept";
        create(&host, &manager, id).await;
        let nft = Nft::new();
        let nobody = vm("net-nobody");
        nft.ensure_vm(&compiled(&nobody)).await.unwrap();
        assert_eq!(manager.firewall().orphaned_chains().await.unwrap().len(), 1);
        manager.shutdown().await.unwrap();
        drop(manager);

        let next = Manager::new(host.settings());
        let mut events = next.subscribe();
        next.initialize().await.unwrap();
        let told = next_event(&mut events, "firewall-orphans").await;
        let chain = ChainNames::of(&nobody.vm_id).vm;
        assert_eq!(told.data["chains"], json!([chain]));
        assert!(ruleset().contains(&chain));
        next.firewall()
            .remove_by_name(&chain)
            .unwrap()
            .await
            .unwrap();
        assert_eq!(
            next.firewall().orphaned_chains().await.unwrap(),
            Vec::<String>::new()
        );
        next.stop_vm(id.into(), forced(), never()).await.unwrap();
        delete(&next, id).await;
        next.shutdown().await.unwrap();
    });
}

#[test]
fn p4_chains_of_no_machine_are_told_once_whenever_the_database_goes() {
    in_private_network(|| async {
        let host = Host::new().await;
        host.manager().await.shutdown().await.unwrap();
        let nobody = compiled(&vm("net-nobody"));
        let nft = Nft::new();
        nft.ensure_vm(&nobody).await.unwrap();
        for answers in 0.. {
            let switch = Switch::new();
            switch.turn(Mode::DownAfter(answers));
            let settings = host.settings();
            let manager = Manager::with_wrappers(settings, None, Some(switch.wrapper()));
            let (mut events, mut all) = (manager.subscribe(), manager.subscribe());
            manager.initialize().await.unwrap();
            let went = switch.is_down();
            switch.turn(Mode::Up);
            if went {
                next_event(&mut events, "database-restored").await;
                next_event(&mut events, "reconcile-complete").await;
                switch.rests().await;
            }
            let told = std::iter::from_fn(|| all.try_recv().ok());
            let told = told.filter(|event| event.kind == "firewall-orphans");
            assert_eq!(told.count(), 1, "away after {answers} answers");
            manager.shutdown().await.unwrap();
            if !went {
                assert!(answers > 1, "it is asked for rows and for chains' machines");
                return;
            }
        }
    });
}
