//! The command line.

use std::process::Command;

use crate::fixture::LICTOR;

pub(crate) fn one_line_and_an_exit_code_above_one() {
    let missing = "/nonexistent/file";
    let wrong: [(&[&str], &str); 23] = [
        (&[], "subcommand"),
        (&["walk"], "walk"),
        (&["release"], "'release' is now 'detach'"),
        (&["run", "--no-such-flag"], "--no-such-flag"),
        (&["run", "--sweep-interval", "30s"], "--sweep-interval is now --resync-interval"),
        (&["run", "--registration", "nowhere"], "nowhere"),
        (&["run", "--cluster-name", "Not_A_Label"], "Not_A_Label"),
        (&["run", "--registration", "catalog", "--cluster-name", "lictor"], "choose another"),
        (&["run", "--registration", "agent", "--cluster-name", "lictor"], "choose another"),
        (&["run", "--namespace", "Not_A_Label"], "Not_A_Label"),
        (&["run", "--resync-interval", "soon"], "soon"),
        (&["run", "--resync-interval", "10ms"], "--resync-interval"),
        (&["run", "--concurrency", "0"], "--concurrency"),
        (&["run", "--allow-static", "300.0.0.0/8"], "300.0.0.0/8"),
        (&["run", "--consul-address", "ftp://consul:21"], "ftp://consul:21"),
        (&["run", "--consul-address", "a:8500,b:8500"], "--registration=catalog"),
        (&["run", "--consul-address", "http://user:secret@consul:8500"], "user or a password"),
        (
            &["run", "--registration", "catalog", "--consul-address", "a:8500,http://user:secret,secret@b:8500"],
            "user or a password",
        ),
        (&["run", "--kubeconfig", missing], missing),
        (&["run", "--policy", missing], missing),
        (&["run", "--consul-ca-cert", missing], missing),
        (&["run", "--consul-token-file", missing], missing),
        (&["run", "--admin-address", "203.0.113.1:1"], "203.0.113.1:1"),
    ];
    for (args, words) in wrong {
        let mut command = Command::new(LICTOR);
        command.args(args).env_clear();
        if args.first() == Some(&"run") && !args.contains(&"--admin-address") {
            command.args(["--admin-address", "127.0.0.1:0"]);
        }
        one_line(&command, words);
    }
    let mut help = Command::new(LICTOR);
    help.args(["run", "--help"]).env_clear();
    for name in ["CONSUL_HTTP_ADDR", "LICTOR_PREVIOUS_AGENT", "LICTOR_PREVIOUS_CONSUL_ADDRESS", "LICTOR_CONSUL_PROXY"] {
        help.env(name, "http://user:secret@consul:8500");
    }
    let said = help.output().map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
    assert!(said.contains("CONSUL_HTTP_ADDR") && !said.contains("secret"), "{said}");
    let policies = [
        ("rules: [", "policy"),
        ("rules: []", "no rules"),
        ("rules: [{name: a, namespaces: [x], tag: [v]}]", "tag"),
        ("rules: [{name: a, namespaces: [Pay]}]", "matches no namespace"),
    ];
    let file = std::env::temp_dir().join(format!("lictor-bad-policy-{}.yaml", std::process::id()));
    for (text, words) in policies {
        assert!(std::fs::write(&file, text).is_ok(), "no file for the policy");
        let mut command = Command::new(LICTOR);
        one_line(command.args(["run", "--admin-address", "127.0.0.1:0", "--policy"]).arg(&file).env_clear(), words);
    }
    let _ = std::fs::remove_file(&file);
    let environments = [
        ("CONSUL_CAPATH", "/etc/ssl/consul", "CONSUL_CAPATH is not supported"),
        ("CONSUL_HTTP_AUTH", "user:secret", "CONSUL_HTTP_AUTH is not supported"),
        ("CONSUL_GRPC_ADDR", "consul:8502", "CONSUL_GRPC_ADDR is not supported"),
        ("CONSUL_GRPC_CACERT", "/etc/ssl/consul.pem", "CONSUL_GRPC_CACERT is not supported"),
        ("CONSUL_GRPC_CAPATH", "/etc/ssl/consul", "CONSUL_GRPC_CAPATH is not supported"),
        ("CONSUL_NAMESPACE", "a team", "--consul-namespace"),
        ("CONSUL_PARTITION", "a part", "--consul-partition"),
        ("CONSUL_HTTP_SSL", "maybe", "CONSUL_HTTP_SSL"),
    ];
    for (name, value, words) in environments {
        let mut command = Command::new(LICTOR);
        one_line(command.args(["run", "--admin-address", "127.0.0.1:0"]).env_clear().env(name, value), words);
    }
}

/// Fails unless a command ends with a code above 1 and one line that holds these words.
fn one_line(command: &Command, words: &str) {
    let (code, stderr) = end(command);
    assert!(code.is_some_and(|code| code > 1), "{command:?} ends with {code:?}: {stderr}");
    assert!(stderr.lines().count() == 1, "{command:?} is not one line:\n{stderr}");
    assert!(!stderr.contains("secret"), "{command:?} shows what is secret: {stderr}");
    assert!(stderr.contains(words), "{command:?} does not say {words:?}: {stderr}");
}

/// Exit code and stderr. What does not end by itself is ended after a while, and has no code then.
fn end(command: &Command) -> (Option<i32>, String) {
    let mut limited = Command::new("timeout");
    limited.args(["--signal=KILL", "10"]).arg(command.get_program()).args(command.get_args());
    let environment = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    match limited.env_clear().envs(environment).output() {
        Ok(output) => {
            (output.status.code().filter(|code| *code < 128), String::from_utf8_lossy(&output.stderr).into_owned())
        }
        Err(error) => panic!("timeout: {error}"),
    }
}
