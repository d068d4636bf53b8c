//! The program as a user calls it: keys, completions, the manual, and what it says about mistakes. Needs no privilege.

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

/// RFC 7748 6.1: both parties' keys in base64.
const ALICE: [&str; 2] =
    ["dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=", "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="];
const BOB: [&str; 2] = ["XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=", "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="];

/// The program in an environment without any of its variables.
fn wgd(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgd"));
    command.args(words).env_clear();
    command
}

fn run(words: &[&str]) -> Output {
    wgd(words).stdin(Stdio::null()).output().expect("started")
}

fn run_with_input(words: &[&str], input: &[u8]) -> Output {
    let mut child =
        wgd(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    // It may have seen enough before it has read all.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("ended")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Checks that it failed with this exit code and one line on standard error, and returns the line.
fn complaint(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    text(&output.stderr).to_owned()
}

#[test]
fn pubkey_finds_the_public_keys_of_the_rfc() {
    for [private, public] in [ALICE, BOB] {
        for input in [private.to_owned(), format!("{private}\n")] {
            let output = run_with_input(&["pubkey"], input.as_bytes());
            assert!(output.status.success(), "{output:?}");
            assert_eq!(text(&output.stdout), format!("{public}\n"));
            assert_eq!(text(&output.stderr), "");
        }
    }
}

#[test]
fn pubkey_says_what_it_wants_when_it_gets_something_else() {
    for input in ["", "\n", "hello\n", ALICE[0].split_at(40).0, &format!("{0}\n{0}\n", ALICE[0])] {
        let line = complaint(&run_with_input(&["pubkey"], input.as_bytes()), 1);
        assert!(line.starts_with("wgd: standard input does not hold a private key"), "{line}");
        assert!(line.contains("genkey"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[test]
fn pubkey_does_not_repeat_what_it_was_given() {
    let almost = &ALICE[0][..43];
    let line = complaint(&run_with_input(&["pubkey"], almost.as_bytes()), 1);
    assert!(!line.contains(almost));
}

#[test]
fn genkey_prints_a_new_clamped_key_each_time_that_pubkey_takes() {
    let (first, second) = (run(&["genkey"]), run(&["genkey"]));
    assert!(first.status.success());
    assert_ne!(first.stdout, second.stdout);
    let key = text(&first.stdout);
    assert_eq!((key.len(), key.ends_with('\n')), (45, true));
    let parsed: wg_core::PrivateKey = key.trim().parse().expect("base64");
    assert_eq!(parsed.to_base64().as_str(), key.trim(), "clamped already");
    assert!(run_with_input(&["pubkey"], &first.stdout).status.success());
}

#[test]
fn genpsk_prints_a_new_key_each_time() {
    let (first, second) = (run(&["genpsk"]), run(&["genpsk"]));
    assert!(first.status.success());
    assert_ne!(first.stdout, second.stdout);
    assert!(text(&first.stdout).trim().parse::<wg_core::PresharedKey>().is_ok());
}

#[test]
fn a_secret_written_to_a_file_for_everybody_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::TempDir::new().expect("a directory");
    for (mode, warns) in [(0o644, true), (0o600, false)] {
        let path = directory.path().join(mode.to_string());
        let file = fs::File::create(&path).expect("created");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        let output = wgd(&["genkey"]).stdout(file).stderr(Stdio::piped()).output().expect("started");
        assert!(output.status.success());
        assert_eq!(text(&output.stderr).contains("umask 077"), warns, "{mode:o}");
        assert_eq!(fs::read(&path).expect("read").len(), 45);
    }
}

#[test]
fn a_reader_that_has_left_is_no_error() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let output = wgd(&["completions", "bash"]).stdout(writer).stderr(Stdio::piped()).output().expect("started");
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn the_version_is_one_line() {
    for words in [["--version"], ["-V"]] {
        let output = run(&words);
        assert!(output.status.success());
        assert_eq!(text(&output.stdout), format!("wgd {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn help_names_every_command_and_variable() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for word in [
        "genkey",
        "pubkey",
        "genpsk",
        "show",
        "demo",
        "completions",
        "man",
        "IFNAME",
        "--foreground",
        "LOG_LEVEL",
        "WG_PROCESS_FOREGROUND",
        "WG_TUN_FD",
        "WG_UAPI_FD",
        "WG_THREADS",
        "WG_LOG_LEVEL",
        "WG_LOG_FILE",
        "WG_SUDO",
        "WG_LOG_FORMAT",
        "/var/run/wireguard",
    ] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn completions_are_there_for_every_shell_and_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(text(&output.stdout).contains("genkey"), "{shell}");
    }
    assert_eq!(run(&["completions", "cmd"]).status.code(), Some(2));
}

#[test]
fn the_manual_is_roff_and_tells_of_environment_files_and_exit_status() {
    let output = run(&["man"]);
    assert!(output.status.success());
    let page = text(&output.stdout);
    assert!(page.contains(".TH wgd 8"), "{page}");
    for word in ["NAME", "SYNOPSIS", "Environment", "Files", "Exit status", "genkey"] {
        assert!(page.contains(word), "{word}");
    }
    assert!(text(&run(&["man", "show"]).stdout).contains("json"));
    let line = complaint(&run(&["man", "nosuch"]), 1);
    assert!(line.contains("nosuch") && line.contains("genkey"), "{line}");
}

#[test]
fn nothing_to_do_and_words_that_mean_nothing_are_refused_with_exit_code_2() {
    for words in [
        &[][..],
        &["-f"],
        &["--nosuch", "wg0"],
        &["wg0", "wg1"],
        &["../wg0"],
        &["a-name-that-is-too-long"],
        &["genkey", "extra"],
        &["--tun-fd", "x", "wg0"],
        &["--log-format", "xml", "wg0"],
        &["-t", "many", "wg0"],
    ] {
        let line = complaint(&run(words), 2);
        assert!(!line.is_empty(), "{words:?}");
    }
}

#[test]
fn an_impossible_name_is_refused_with_its_cause() {
    assert!(complaint(&run(&["a-name-that-is-too-long"]), 2).contains("at most 15"));
    assert!(complaint(&run(&["../wg0"]), 2).contains("slashes"));
}

#[test]
fn variables_that_make_no_sense_are_refused_by_name() {
    for (name, value, expected) in [
        ("WG_SUDO", "maybe", "true"),
        ("WG_LOG_LEVEL", "loud", "verbose"),
        ("WG_LOG_FORMAT", "xml", "json"),
        ("WG_THREADS", "many", "number"),
        ("WG_TUN_FD", "x", "descriptor"),
        ("WG_UAPI_FD", "1", "descriptor"),
    ] {
        let output = wgd(&["-f", "wg0"]).env(name, value).output().expect("started");
        let line = complaint(&output, 2);
        assert!(line.starts_with(&format!("wgd: {name}={value}: expected")), "{line}");
        assert!(line.contains(expected), "{line}");
    }
}

#[test]
fn variables_of_the_daemon_do_not_disturb_the_tools() {
    let output = wgd(&["genkey"]).env("WG_SUDO", "maybe").env("WG_TUN_FD", "x").output().expect("started");
    assert!(output.status.success());
}

#[test]
fn a_descriptor_that_was_not_passed_on_is_named() {
    for (name, words) in [("WG_TUN_FD", ["-f", "wg0"]), ("WG_UAPI_FD", ["-f", "wg0"])] {
        let output = wgd(&words).env(name, "987").output().expect("started");
        let line = complaint(&output, 1);
        assert!(line.contains(&format!("{name}=987 is not an open descriptor")), "{line}");
    }
    // The same through the background.
    let output = wgd(&["wg0"]).env("WG_TUN_FD", "987").output().expect("started");
    let line = complaint(&output, 1);
    assert!(line.starts_with("wgd: WG_TUN_FD=987 is not an open descriptor"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[test]
fn a_log_file_that_cannot_be_opened_is_named() {
    let output = wgd(&["-f", "--log", "/nonexistent/wgd.log", "wg0"]).output().expect("started");
    let line = complaint(&output, 1);
    assert!(line.contains("/nonexistent/wgd.log"), "{line}");
}

#[test]
fn show_says_which_socket_does_not_answer() {
    let line = complaint(&run(&["show", "wgd-no-such"]), 1);
    assert!(line.contains("wgd-no-such") && line.contains("/var/run/wireguard/wgd-no-such.sock"), "{line}");
}

#[test]
fn a_demonstration_inside_a_demonstration_builds_no_sandbox() {
    let output =
        wgd(&["demo", "--seconds", "1"]).env("WGD_IN_SANDBOX", "1").stdin(Stdio::null()).output().expect("started");
    assert!(text(&output.stdout).contains("WGD_IN_SANDBOX is set"), "{output:?}");
}
