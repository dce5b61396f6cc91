//! Every location has one text, and what is wrong with one is told by its path.

use serde_json::{Value, json};

use super::*;
use crate::config::fields::Report;

fn given(value: &Value) -> Result<NetworkLocation, Vec<String>> {
    let report = Report::default();
    let location = read("location", value, &report);
    let parsed = report.conclude(location);
    parsed.map(|parsed| parsed.config).map_err(|error| {
        let issues = error.issues.into_iter();
        issues.map(|issue| issue.path).collect()
    })
}

#[test]
fn each_location_has_one_text_and_one_serde_form() {
    let table = [
        (
            json!({ "type": "nbd", "host": "10.0.0.1" }),
            "nbd://10.0.0.1:10809/",
        ),
        (
            json!({ "type": "nbd", "host": "fe80::1", "port": 1, "export": "a" }),
            "nbd://[fe80::1]:1/a",
        ),
        (
            json!({ "type": "nbd", "host": "n", "tls": { "credentials": "/etc/pki" } }),
            "nbds://n:10809/",
        ),
        (
            json!({ "type": "nbd", "path": "/run/x.sock", "export": "a" }),
            "nbd+unix:///a?socket=/run/x.sock",
        ),
        (
            json!({ "type": "rbd", "pool": "p", "namespace": "n", "image": "i" }),
            "rbd:p/n/i",
        ),
    ];
    for (value, text) in table {
        let location = DiskLocation::Network(given(&value).unwrap());
        assert_eq!(location.to_string(), text);
        assert!(DiskLocation::is_network_text(text) && HostPath::parse(text).is_err());
        let kept = serde_json::to_value(&location).unwrap();
        let read: DiskLocation = serde_json::from_value(kept).unwrap();
        assert_eq!(read, location);
    }
    let file = DiskLocation::File(HostPath::parse("/a").unwrap());
    assert_eq!(
        serde_json::to_value(&file).unwrap(),
        json!({ "path": "/a" })
    );
}

#[test]
fn one_disk_is_one_however_it_is_reached() {
    let nbd = json!({ "type": "nbd", "host": "h", "export": "e" });
    let rbd = json!({ "type": "rbd", "pool": "p", "image": "i" });
    for (location, member, value, same) in [
        (&nbd, "port", json!(10809), true),
        (&nbd, "reconnectDelay", json!(9), true),
        (&nbd, "tls", json!({ "credentials": "/c" }), true),
        (&nbd, "port", json!(1), false),
        (&nbd, "export", json!("f"), false),
        (&rbd, "user", json!("u"), true),
        (&rbd, "conf", json!("/c"), true),
        (&rbd, "namespace", json!("n"), false),
        (&rbd, "image", json!("j"), false),
    ] {
        let mut other = location.clone();
        other[member] = value;
        let (one, two) = (given(location).unwrap(), given(&other).unwrap());
        assert_eq!(one.is_same_disk(&two), same, "{other}");
    }
    let (nbd, rbd) = (given(&nbd).unwrap(), given(&rbd).unwrap());
    assert!(!nbd.is_same_disk(&rbd));
}

#[test]
fn b2_b3_b20_what_makes_no_location_is_refused_by_its_field() {
    let table = [
        (json!("nbd://host/export"), "location"),
        (json!({}), "location.type"),
        (json!({ "type": "iscsi" }), "location.type"),
        (json!({ "type": "nbd" }), "location"),
        (
            json!({ "type": "nbd", "host": "a", "path": "/run/s" }),
            "location",
        ),
        (json!({ "type": "nbd", "host": "a,b" }), "location.host"),
        (json!({ "type": "nbd", "host": "a;b" }), "location.host"),
        (json!({ "type": "nbd", "host": "[::1]" }), "location.host"),
        (json!({ "type": "nbd", "host": "a:1" }), "location.host"),
        (json!({ "type": "nbd", "host": "" }), "location.host"),
        (
            json!({ "type": "nbd", "host": "a", "port": 0 }),
            "location.port",
        ),
        (
            json!({ "type": "nbd", "host": "a", "port": "1" }),
            "location.port",
        ),
        (
            json!({ "type": "nbd", "path": "/run/s", "port": 1 }),
            "location.port",
        ),
        (json!({ "type": "nbd", "path": "run/s" }), "location.path"),
        (
            json!({ "type": "nbd", "path": format!("/{}", "x".repeat(108)) }),
            "location.path",
        ),
        (
            json!({ "type": "nbd", "host": "a", "export": "a\nb" }),
            "location.export",
        ),
        (
            json!({ "type": "nbd", "host": "a", "uri": "x" }),
            "location.uri",
        ),
        (
            json!({ "type": "nbd", "host": "a", "tls": {} }),
            "location.tls.credentials",
        ),
        (
            json!({ "type": "nbd", "path": "/run/s", "tls": { "credentials": "/c" } }),
            "location.tls.hostname",
        ),
        (json!({ "type": "rbd", "image": "i" }), "location.pool"),
        (
            json!({ "type": "rbd", "pool": "p", "image": "i@s" }),
            "location.image",
        ),
        (
            json!({ "type": "rbd", "pool": "p/q", "image": "i" }),
            "location.pool",
        ),
        (
            json!({ "type": "rbd", "pool": "p", "image": "i", "user": "a:key=b" }),
            "location.user",
        ),
        (
            json!({ "type": "rbd", "pool": "p", "image": "i", "conf": "ceph.conf" }),
            "location.conf",
        ),
        (
            json!({ "type": "rbd", "pool": "p", "image": "i", "monitors": [] }),
            "location.monitors",
        ),
        (
            json!({ "type": "rbd", "pool": "p", "image": "i", "monitors": [{ "host": "a,b" }] }),
            "location.monitors[0].host",
        ),
    ];
    for (value, path) in table {
        assert_eq!(given(&value).unwrap_err(), [path], "{value}");
    }
}
