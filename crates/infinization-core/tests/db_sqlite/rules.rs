//! Firewall rules.

use super::*;

#[tokio::test]
async fn rules_come_back_as_given_lowest_priority_first() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    assert_eq!(db.get_firewall_rule_set_id(&id).await.unwrap(), None);
    assert!(db.get_firewall_rules(&id).await.unwrap().is_empty());

    let given = vec![rule("c", 500.0), rule("b", 500.0), rule("a", 0.5)];
    db.set_firewall_rules(&id, given.clone()).await.unwrap();
    let expected = [given[2].clone(), given[0].clone(), given[1].clone()];
    assert_eq!(db.get_firewall_rules(&id).await.unwrap(), expected);
    let split = db.get_firewall_rules_split(&id).await.unwrap();
    assert_eq!(
        (split.department_rules.len(), split.vm_rules),
        (0, expected.to_vec())
    );
    assert_eq!(
        db.get_firewall_rule_set_id(&id).await.unwrap().as_deref(),
        Some("vm-1")
    );
    let found = db.find_machine_with_config(&id).await.unwrap().unwrap();
    let set = found.firewall_rule_set.unwrap();
    assert_eq!(
        (set.id.as_str(), set.is_active, set.rules),
        ("vm-1", true, expected.to_vec())
    );

    db.set_firewall_rules(&id, vec![rule("", 1.0), rule("", 1.0)])
        .await
        .unwrap();
    let replaced = db.get_firewall_rules(&id).await.unwrap();
    assert_eq!(replaced.len(), 2);
    assert!(!replaced[0].id.is_empty() && replaced[0].id != replaced[1].id);
}

#[tokio::test]
async fn b28_a_refused_rule_set_leaves_the_old_one() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    db.set_firewall_rules(&id, vec![rule("a", 1.0)])
        .await
        .unwrap();
    let twice = vec![rule("x", 1.0), rule("x", 2.0)];
    assert_eq!(
        code(db.set_firewall_rules(&id, twice).await),
        ErrorCode::ConstraintViolation
    );
    assert_eq!(db.get_firewall_rules(&id).await.unwrap(), [rule("a", 1.0)]);
}
