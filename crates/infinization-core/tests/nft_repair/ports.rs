//! A machine's other port, which may not be there yet.

use super::*;

#[test]
fn the_first_of_two_ports_is_closed_and_the_second_keeps_the_rules() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        let names = ChainNames::of(&a.vm_id);
        let second = LinkName::parse("second").unwrap();
        nft.attach(&names, &second).await.unwrap();
        nft.detach(&a.tap).await.unwrap();
        let good = contents();
        run(&format!("nft flush chain bridge infinization {}", names.vm));
        notices(&nft).await;
        let repair = nft.repair().await.unwrap();
        assert_eq!(repair.unknown, []);
        assert_eq!(parts(&repair), [(Part::Rules, Some(names.vm.as_str()))]);
        assert_eq!(contents(), good, "and the first one is still closed");
        is_settled(&nft).await;
    });
}

#[test]
fn rules_loaded_for_the_second_of_two_ports_keep_the_first_open() {
    in_private_network(|| async {
        let (nft, [a, _b]) = two_machines().await;
        let names = ChainNames::of(&a.vm_id);
        let tap = LinkName::parse("second").unwrap();
        nft.attach(&names, &tap).await.unwrap();
        let other = VmFirewall { tap, ..a.clone() };
        nft.ensure_vm(&compiled(&other)).await.unwrap();
        let good = contents();
        for port in [&a.tap, &other.tap] {
            run(&format!(
                "nft delete element bridge infinization to_vm {{ {port} }}"
            ));
            notices(&nft).await;
            let repair = nft.repair().await.unwrap();
            assert_eq!(parts(&repair), [(Part::Dispatch, Some(names.vm.as_str()))]);
            assert_eq!(contents(), good);
            is_settled(&nft).await;
        }
    });
}
