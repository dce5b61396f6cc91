use std::collections::BTreeSet;

use super::*;

#[test]
fn i43_what_looks_like_a_secret_is_taken_out() {
    for (text, told) in [
        ("", ""),
        ("no password here", "no password here"),
        ("a password=hunter2 b", "a password=***"),
        (
            "-spice port=5900,password=hunter2,addr=::",
            "-spice port=5900,password=***,addr=::",
        ),
        ("PASSWD=x;Secret: y", "PASSWD=***;Secret: ***"),
        (
            "{\"password\": \"a, b\", \"x\": 1}",
            "{\"password\": \"***\", \"x\": 1}",
        ),
        ("https://h/?secret=s&b=1", "https://h/?secret=***&b=1"),
        ("passphrase='ä ö'", "passphrase='***'"),
        ("password=", "password="),
        ("password=a password=b", "password=*** password=***"),
        ("the secret=\nnext", "the secret=\nnext"),
        ("password=a,,b,c", "password=***,c"),
        ("password=a,,", "password=***"),
        (
            "-object secret,id=s,data=hunter2,format=raw: no",
            "-object secret,id=s,data=***,format=raw: no",
        ),
        (
            "secret,data=a,,b,password=c,data=d e",
            "secret,data=***,password=***,data=***",
        ),
        ("a secret, b,data=c data=d", "a secret, b,data=c data=d"),
        (r#""password": "a\"tail" b"#, r#""password": "***" b"#),
        (
            r#""password": "a\\", "x": "y""#,
            r#""password": "***", "x": "y""#,
        ),
        (
            r#"{\"password\": \"hunter2\", \"x\": 1}"#,
            r#"{\"password\": \"***\", \"x\": 1}"#,
        ),
        (
            r#"\"password\": \"a\\\"tail\" b"#,
            r#"\"password\": \"***\" b"#,
        ),
    ] {
        assert_eq!(redacted(text), told, "{text:?}");
        assert_eq!(redacted(told), told, "once more: {text:?}");
    }
}

#[test]
fn i43_blanks_are_part_of_a_secret_until_something_else_begins() {
    for (text, told) in [
        ("password=my secret word", "password=***"),
        (
            "password=my secret word\nnext line",
            "password=***\nnext line",
        ),
        ("password=my\tsecret \n", "password=*** \n"),
        ("password: my secret word", "password: ***"),
        ("passphrase = ä ö", "passphrase = ***"),
        ("password=my, word", "password=***, word"),
        ("password=it's my word", "password=***"),
        ("'password=my word', b", "'password=***', b"),
        (
            "{\"m\":\"password=my word\",\"x\":1}",
            "{\"m\":\"password=***\",\"x\":1}",
        ),
        // QEMU.
        (
            "qemu: -spice port=1,password=my word,addr=::: no",
            "qemu: -spice port=1,password=***,addr=::: no",
        ),
        (
            "qemu: -spice password=my word: binding failed: in use",
            "qemu: -spice password=***: binding failed: in use",
        ),
        (
            "-object secret,id=s,data=my word: no",
            "-object secret,id=s,data=***: no",
        ),
        // Arguments, and lines of logs.
        (
            "x --password=my word --verbose -f a",
            "x --password=*** --verbose -f a",
        ),
        ("password=my - word host=a b", "password=*** host=a b"),
        ("password=my d29yZA== b", "password=***"),
        (
            "password=my api_secret=word b",
            "password=*** api_secret=***",
        ),
        ("password=my secret: word", "password=***"),
        // What is no text.
        (
            "{\"secret\":{\"a\":\"my word\"},\"b\":1}",
            "{\"secret\":***",
        ),
        ("secret: ['my', 'word']\nb", "secret: ***\nb"),
    ] {
        assert_eq!(redacted(text), told, "{text:?}");
        assert_eq!(redacted(told), told, "once more: {text:?}");
    }
}

#[test]
fn i43_the_data_of_a_secret_in_json_is_taken_out() {
    for (text, told) in [
        (
            r#"-object {"qom-type":"secret","id":"s","data":"hunter2"}: no"#,
            r#"-object {"qom-type":"secret","id":"s","data":"***"}: no"#,
        ),
        (
            r#"{ "data" : "a}, \"b", "format": null, "qom-type" : "secret" }"#,
            r#"{ "data" : "***", "format": null, "qom-type" : "secret" }"#,
        ),
        (
            "{\n'qom-type': 'secret',\n'data': 'my word'",
            "{\n'qom-type': 'secret',\n'data': '***'",
        ),
        (
            r#"{"desc":"in {\"data\":\"my\",\"qom-type\":\"secret\"}","a":1}"#,
            r#"{"desc":"in {\"data\":\"***\",\"qom-type\":\"secret\"}","a":1}"#,
        ),
        (
            r#"[{"qom-type":"secret","data":""},{"data":"a"},{"qom-type":"tls","data":"b"}]"#,
            r#"[{"qom-type":"secret","data":""},{"data":"a"},{"qom-type":"tls","data":"b"}]"#,
        ),
    ] {
        assert_eq!(redacted(text), told, "{text:?}");
        assert_eq!(redacted(told), told, "once more: {text:?}");
    }
}

#[test]
fn i43_what_is_known_is_taken_out_whatever_it_is_made_of() {
    let known = ["sesame", "my: sesame, --and \"more\"", "abc", "on", "Pass"].map(Secret::new);
    for (text, told) in [
        (
            "password=my: sesame, --and \"more\": no",
            "password=***: no",
        ),
        ("said my: sesame, --and \"more\"!", "said ***!"),
        ("the sesame, on abc", "the ***, on abc"),
        ("Password=another one", "Password=***"),
    ] {
        assert_eq!(redacted_with(text, &known), told, "{text:?}");
    }
}

#[test]
fn secrets_are_found_among_arguments() {
    for (args, secrets) in [
        (vec!["-m", "1G", "--password-file", "/run/p"], vec![]),
        (vec!["--db-password", "my, word"], vec!["my, word"]),
        (vec!["--password"], vec![]),
        (vec!["--password=my, word"], vec!["my", "my, word"]),
        (
            vec!["-spice", "port=1,password=a,,b c,addr=::"],
            vec!["a,,b c", "a,b c"],
        ),
        (
            vec!["-object", "secret,id=s,data=my: word"],
            vec!["my: word"],
        ),
        (
            vec!["-device", "{\"a\":1,\"password\":\"my, word\"}"],
            vec!["my, word"],
        ),
        (
            vec!["-object", "{'qom-type':'secret','data':'a}, b'}"],
            vec!["a}, b"],
        ),
        // Ids, and options that follow.
        (
            vec!["-drive", "encrypt.key-secret=sec0,password-secret=vnc0"],
            vec![],
        ),
        (vec!["-o", "key-secret=sec0,password=my"], vec!["my"]),
        (vec!["-blockdev", "{\"key-secret\": \"sec0\"}"], vec![]),
        (vec!["--client-secret=my word"], vec!["my word"]),
        (
            vec!["--no-password", "--host", "--password", "--verbose"],
            vec![],
        ),
    ] {
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let found = secrets_among(&args);
        let found: BTreeSet<&str> = found.iter().map(Secret::reveal).collect();
        assert_eq!(found, BTreeSet::from_iter(secrets), "{args:?}");
    }
}

#[test]
fn what_is_found_among_arguments_is_no_more_than_a_few_times_as_much() {
    for many in [
        "password='x' ".repeat(8_000),
        std::array::from_fn::<_, 8_000, _>(|n| format!("password='{n}' ")).concat(),
    ] {
        let length = many.len();
        let found = secrets_among(&[many]);
        let found = found.iter().map(|secret| secret.reveal().len());
        assert!(found.sum::<usize>() <= 2 * length);
    }
}

#[test]
fn whatever_is_said_takes_no_longer_than_there_is_of_it() {
    let many = 50_000;
    for (text, told) in [
        ("data=", "data=".repeat(many)),
        ("secret ", "secret ".repeat(many)),
        ("{", "{".repeat(many)),
        ("{\"'", "{\"'".repeat(many)),
        ("secret=", "secret=***".to_owned()),
        ("secret=  ", "secret=  ***".to_owned()),
        ("secret: ", "secret: ***".to_owned()),
    ] {
        assert_eq!(
            redacted(&text.repeat(many)).trim_end(),
            told.trim_end(),
            "{text}"
        );
    }
}
