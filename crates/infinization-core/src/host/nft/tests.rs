use std::collections::VecDeque;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;

use super::*;
use crate::error::{Coded, ErrorCode};
use crate::firewall::{HostService, NatListing, NatTransaction, VmFirewall, compile};
use crate::host::program::ProgramError;
use crate::types::{VmId, VmNames};

/// Confirms everything, unless told otherwise, and counts what it is asked.
#[derive(Debug, Default)]
struct Fake {
    commits: AtomicU64,
    checks: StdMutex<VecDeque<Result<(), NftError>>>,
    tamper: Option<fn(&mut Vec<CommittedRule>)>,
}

#[async_trait]
impl NftTransport for Fake {
    async fn commit(&self, transaction: &Transaction) -> Result<Committed, NftError> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        let rules = transaction.added_rules().zip(1..);
        let mut rules: Vec<_> = rules
            .map(|((chain, comment), handle)| CommittedRule {
                chain: chain.to_owned(),
                comment: comment.to_owned(),
                handle,
            })
            .collect();
        if let Some(tamper) = self.tamper {
            tamper(&mut rules);
        }
        let sender = None;
        Ok(Committed { sender, rules })
    }

    async fn delete_elements(&self, _: Vec<(VerdictMap, LinkName)>) -> Result<Committed, NftError> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(Committed::default())
    }

    async fn check(&self, _: &Transaction) -> Result<(), NftError> {
        let next = self.checks.lock().unwrap().pop_front();
        next.expect("no more probing than expected")
    }

    async fn chains(&self) -> Result<Vec<String>, NftError> {
        Ok(Vec::new())
    }

    async fn read(&self) -> Result<Reading, NftError> {
        Ok(Reading::default())
    }

    async fn generation(&self) -> Option<u32> {
        None
    }

    async fn has_table(&self) -> Result<bool, NftError> {
        Ok(true)
    }

    async fn commit_nat(&self, _: &NatTransaction) -> Result<Committed, NftError> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(Committed::default())
    }

    async fn read_nat(&self) -> Result<NatListing, NftError> {
        Ok(NatListing::default())
    }
}

pub(super) fn compiled() -> Compiled {
    let vm_id = VmId::parse("vm-1").unwrap();
    let names = VmNames::of(&vm_id);
    let vm = VmFirewall {
        vm_id,
        tap: names.tap,
        mac: names.mac,
        known_addresses: Vec::new(),
        bridge_addresses: Vec::new(),
        host_services: HostService::DEFAULT.to_vec(),
        department_rules: Vec::new(),
        vm_rules: Vec::new(),
        default_action: FirewallDefaultAction::Drop,
        conntrack: Conntrack::Stateless,
        reject: false,
    };
    compile(&vm).unwrap()
}

fn refused() -> NftError {
    NftError::Refused {
        errno: Some(Errno::EPROTO),
        stderr: "Protocol error".to_owned(),
        exit_code: Some(1),
    }
}

fn probing(checks: impl IntoIterator<Item = Result<(), NftError>>) -> Nft {
    Nft::with_transport(Arc::new(Fake {
        checks: StdMutex::new(checks.into_iter().collect()),
        ..Fake::default()
    }))
}

#[tokio::test]
async fn each_change_is_one_commit() {
    let fake = Arc::new(Fake::default());
    let nft = Nft::with_transport(Arc::clone(&fake) as Arc<dyn NftTransport>);
    let compiled = compiled();
    let (names, tap) = (&compiled.ruleset.names, &compiled.ruleset.tap);
    nft.prepare().await.unwrap();
    nft.ensure_vm(&compiled).await.unwrap();
    nft.create_chains(names).await.unwrap();
    nft.attach(names, tap).await.unwrap();
    nft.detach(tap).await.unwrap();
    nft.flush_vm(names, FirewallDefaultAction::Drop)
        .await
        .unwrap();
    nft.remove_vm(names).await.unwrap();
    nft.remove_chain_by_name(&names.vm).await.unwrap();
    assert_eq!(fake.commits.load(Ordering::Relaxed), 8);
}

#[tokio::test]
async fn what_the_kernel_did_not_confirm_is_a_mismatch() {
    let tampering: [fn(&mut Vec<CommittedRule>); 4] = [
        |rules| drop(rules.pop()),
        |rules| rules[3].comment = "something else".to_owned(),
        |rules| rules.swap(3, 4),
        |rules| rules[1].handle = rules[0].handle,
    ];
    for tamper in tampering {
        let nft = Nft::with_transport(Arc::new(Fake {
            tamper: Some(tamper),
            ..Fake::default()
        }));
        let error = nft.ensure_vm(&compiled()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::RulesetMismatch, "{error}");
    }
}

#[tokio::test]
async fn f10_the_probe_asks_once() {
    let nft = probing([Ok(()), Err(refused()), Ok(())]);
    let clone = nft.clone();
    let (first, second) = tokio::join!(nft.capabilities(), clone.capabilities());
    let expected = Capabilities {
        conntrack: false,
        reject: true,
    };
    assert_eq!((first.unwrap(), second.unwrap()), (expected, expected));
    let mode = nft.conntrack(BridgeConntrackMode::Degrade).await.unwrap();
    assert_eq!(mode, Conntrack::Stateless);
}

#[tokio::test]
async fn f10_what_is_missing_is_looked_for_again_and_what_is_there_is_not() {
    let without = || [Ok(()), Err(refused()), Ok(())];
    let whole = || [Ok(()), Ok(()), Ok(())];
    // As many answers as there may be questions.
    let answers = without().into_iter().chain(without()).chain(whole());
    let nft = probing(answers.collect::<Vec<_>>());
    let error = async |mode| nft.conntrack(mode).await.map_err(|error| error.code());
    assert_eq!(
        error(BridgeConntrackMode::Degrade).await,
        Ok(Conntrack::Stateless)
    );
    let refused = Err(ErrorCode::ConntrackUnavailable);
    assert_eq!(error(BridgeConntrackMode::Fail).await, refused);
    assert_eq!(
        error(BridgeConntrackMode::Degrade).await,
        Ok(Conntrack::Stateless)
    );
    // Somebody has loaded the module.
    assert_eq!(
        error(BridgeConntrackMode::Fail).await,
        Ok(Conntrack::Stateful)
    );
    for _again in 0..2 {
        assert!(nft.capabilities_now().await.unwrap().conntrack);
        assert_eq!(
            error(BridgeConntrackMode::Fail).await,
            Ok(Conntrack::Stateful)
        );
    }
}

#[tokio::test]
async fn f10_a_probe_that_could_not_run_is_not_an_answer() {
    let absent = || ProgramError::NotFound {
        program: "nft".to_owned(),
    };
    let nft = probing([
        Err(absent().into()),
        Err(NftError::PermissionDenied),
        Err(refused()),
        Ok(()),
        Err(absent().into()),
        Ok(()),
        Ok(()),
        Ok(()),
    ]);
    let codes = [
        ErrorCode::ProgramNotFound,
        ErrorCode::NftPermissionDenied,
        ErrorCode::NftCommandFailed,
        ErrorCode::ProgramNotFound,
    ];
    for code in codes {
        assert_eq!(nft.capabilities().await.unwrap_err().code(), code);
    }
    let mode = nft.conntrack(BridgeConntrackMode::Fail).await.unwrap();
    assert_eq!(mode, Conntrack::Stateful);
}
