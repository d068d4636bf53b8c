//! The control socket in front of an interface in memory: who may take its place, who is answered, and when it ends.

mod uapi_support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;
use uapi_support::{Memory, public_key};
use wg_router::InstanceName;
use wgd::control_socket::{self, ControlSocket, ControlSocketEnd, ControlSocketError};

/// Longest wait for something that must happen; only a failing test waits that long.
const LIMIT: Duration = Duration::from_secs(20);

fn name() -> InstanceName {
    "wg0".parse().expect("a name")
}

/// A control socket that is served on a thread of its own until it ends.
struct Served {
    directory: TempDir,
    thread: Option<JoinHandle<ControlSocketEnd>>,
}

impl Served {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let socket = ControlSocket::bind(directory.path(), &name()).expect("bound");
        Served { thread: Some(serve(socket)), directory }
    }

    fn path(&self) -> PathBuf {
        control_socket::path_of(self.directory.path(), &name())
    }

    fn connect(&self) -> UnixStream {
        connect(&self.path())
    }

    fn end(mut self) -> ControlSocketEnd {
        self.thread.take().expect("not joined yet").join().expect("no panic")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: ControlSocket) -> JoinHandle<ControlSocketEnd> {
    thread::spawn(move || run(socket, Memory::new()))
}

fn run(socket: ControlSocket, interface: Memory) -> ControlSocketEnd {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(socket.serve(Arc::new(interface)))
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("answered");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    stream
}

/// Asks, and reads one whole answer.
fn ask(stream: &mut UnixStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\n\n") {
        assert_eq!(stream.read(&mut byte).expect("an answer in time"), 1, "closed after {answer:?}");
        answer.push(byte[0]);
    }
    String::from_utf8(answer).expect("text")
}

#[test]
fn the_socket_is_for_the_owner_alone_in_a_directory_for_all() {
    let above = TempDir::new().expect("a directory");
    let directory = above.path().join("run/wireguard");
    let socket = ControlSocket::bind(&directory, &name()).expect("bound");
    let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
    assert_eq!(mode(&directory), 0o755);
    assert_eq!(mode(&directory.join("wg0.sock")) & 0o077, 0);
    drop(socket);
    assert!(!directory.join("wg0.sock").exists());
}

#[test]
fn a_socket_that_answers_is_not_replaced_and_the_refusal_says_whose_it_is() {
    let served = Served::new();
    let refusal = ControlSocket::bind(served.directory.path(), &name()).expect_err("in use");
    assert!(matches!(refusal, ControlSocketError::InUse { .. }));
    let text = refusal.to_string();
    assert!(text.contains("wg0") && text.contains("already in use") && text.contains("ip link delete"), "{text}");
    assert_eq!(ask(&mut served.connect(), "get=1\n\n"), "errno=0\n\n");
}

#[test]
fn a_socket_that_does_not_take_its_clients_is_in_use_too() {
    let directory = TempDir::new().expect("a directory");
    let path = control_socket::path_of(directory.path(), &name());
    let stuck = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
    stuck.bind(&socket2::SockAddr::unix(&path).expect("short")).expect("bound");
    stuck.listen(0).expect("listening");
    let mut waiting = Vec::new();
    loop {
        let client = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
        client.set_nonblocking(true).expect("set");
        if client.connect(&socket2::SockAddr::unix(&path).expect("short")).is_err() {
            break;
        }
        waiting.push(client);
    }
    assert!(matches!(control_socket::check_free(directory.path(), &name()), Err(ControlSocketError::InUse { .. })));
}

#[test]
fn a_dead_socket_is_replaced_and_anything_else_is_not() {
    let directory = TempDir::new().expect("a directory");
    let path = control_socket::path_of(directory.path(), &name());
    drop(UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "the standard library leaves it behind");
    drop(ControlSocket::bind(directory.path(), &name()).expect("replaced"));
    fs::write(&path, "precious").expect("written");
    let refusal = ControlSocket::bind(directory.path(), &name()).expect_err("not a socket");
    assert!(matches!(refusal, ControlSocketError::NotASocket(_)));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn a_link_into_nowhere_or_a_file_in_the_place_of_the_directory_is_named_with_its_remedy() {
    let above = TempDir::new().expect("a directory");
    let nowhere = above.path().join("nowhere");
    let link = above.path().join("link");
    std::os::unix::fs::symlink(&nowhere, &link).expect("linked");
    let file = above.path().join("file");
    fs::write(&file, "precious").expect("written");
    for directory in [&link, &link.join("wireguard")] {
        let text = ControlSocket::bind(directory, &name()).expect_err("no directory").to_string();
        assert!(text.contains(&format!("{} is a symbolic link to {}", link.display(), nowhere.display())), "{text}");
        assert!(text.contains(&format!("mkdir -p {}", nowhere.display())) && !text.contains("read-only"), "{text}");
    }
    for directory in [&file, &file.join("wireguard")] {
        let text = ControlSocket::bind(directory, &name()).expect_err("no directory").to_string();
        assert!(text.contains(&format!("{} exists and is not a directory", file.display())), "{text}");
        assert!(!text.contains("read-only"), "{text}");
    }
    fs::create_dir(&nowhere).expect("created");
    drop(ControlSocket::bind(&link.join("wireguard"), &name()).expect("bound, as the remedy promises"));
}

#[test]
fn removing_the_file_ends_it() {
    let served = Served::new();
    assert_eq!(ask(&mut served.connect(), "get=1\n\n"), "errno=0\n\n");
    fs::remove_file(served.path()).expect("removed");
    assert!(matches!(served.end(), ControlSocketEnd::FileRemoved(_)));
}

#[test]
fn removing_the_whole_directory_ends_it() {
    let above = TempDir::new().expect("a directory");
    let directory = above.path().join("wireguard");
    let thread = serve(ControlSocket::bind(&directory, &name()).expect("bound"));
    ask(&mut connect(&directory.join("wg0.sock")), "get=1\n\n");
    fs::rename(&directory, above.path().join("elsewhere")).expect("renamed");
    fs::remove_dir_all(above.path().join("elsewhere")).expect("removed");
    assert!(matches!(thread.join().expect("no panic"), ControlSocketEnd::FileRemoved(_)));
}

#[test]
fn a_file_that_took_its_place_ends_it_and_is_left_alone() {
    let served = Served::new();
    let path = served.path();
    ask(&mut served.connect(), "get=1\n\n");
    let other = served.directory.path().join("other");
    fs::write(&other, "precious").expect("written");
    fs::rename(&other, &path).expect("renamed over it");
    let directory = served.directory.path().to_owned();
    let mut served = served;
    let end = served.thread.take().expect("not joined yet").join().expect("no panic");
    assert!(matches!(end, ControlSocketEnd::FileRemoved(_)));
    assert_eq!(fs::read_to_string(directory.join("wg0.sock")).expect("still there"), "precious");
}

#[test]
fn other_files_in_the_directory_come_and_go_without_harm() {
    let served = Served::new();
    for number in 0..300 {
        let path = served.directory.path().join(format!("{number}.sock"));
        fs::write(&path, "").expect("written");
        fs::remove_file(&path).expect("removed");
    }
    assert_eq!(ask(&mut served.connect(), "get=1\n\n"), "errno=0\n\n");
}

#[test]
fn a_hundred_clients_at_once_are_answered() {
    let served = Served::new();
    let mut clients: Vec<UnixStream> = (0..100).map(|_| served.connect()).collect();
    for client in &mut clients {
        client.write_all(b"get=1\n").expect("sent");
    }
    for client in &mut clients {
        assert_eq!(ask(client, "\n"), "errno=0\n\n");
    }
}

#[test]
fn clients_that_never_finish_hold_up_neither_others_nor_the_end() {
    let served = Served::new();
    let unfinished: Vec<UnixStream> = ["", "g", "get=1\n", "set=1\n", "set=1\nlisten_port=7\npublic_key="]
        .into_iter()
        .map(|words| {
            let mut client = served.connect();
            client.write_all(words.as_bytes()).expect("sent");
            client
        })
        .collect();
    assert!(ask(&mut served.connect(), "get=1\n\n").ends_with("errno=0\n\n"));
    fs::remove_file(served.path()).expect("removed");
    assert!(matches!(served.end(), ControlSocketEnd::FileRemoved(_)));
    for mut client in unfinished {
        // Closed, one way or the other; not left hanging.
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
    }
}

#[test]
fn a_client_that_does_not_read_its_answer_holds_up_nobody() {
    let served = Served::new();
    let mut lines = String::from("set=1\n");
    for number in 0..2000_u32 {
        lines.push_str(&format!("public_key={number:064x}\n"));
    }
    assert_eq!(ask(&mut served.connect(), &format!("{lines}\n")), "errno=0\n\n");
    let mut deaf = served.connect();
    deaf.write_all(b"get=1\n\n".repeat(50).as_slice()).expect("sent");
    assert!(ask(&mut served.connect(), "get=1\n\n").starts_with("public_key="));
}

#[test]
fn among_too_many_clients_the_oldest_makes_room() {
    let served = Served::new();
    let mut oldest = served.connect();
    ask(&mut oldest, "get=1\n\n");
    let crowd: Vec<UnixStream> = (0..300).map(|_| served.connect()).collect();
    assert_eq!(ask(&mut served.connect(), "get=1\n\n"), "errno=0\n\n");
    match oldest.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("still connected: {other:?}"),
    }
    drop(crowd);
}

#[test]
fn a_fault_while_one_client_is_answered_is_logged_and_the_next_client_is_answered() {
    let directory = TempDir::new().expect("a directory");
    let path = control_socket::path_of(directory.path(), &name());
    let socket = ControlSocket::bind(directory.path(), &name()).expect("bound");
    let (log, writer) = std::io::pipe().expect("a pipe");
    let thread = thread::spawn(move || {
        let log = tracing_subscriber::fmt().with_writer(Arc::new(fs::File::from(OwnedFd::from(writer)))).finish();
        tracing::subscriber::with_default(log, || run(socket, Memory::new().with_fault()))
    });
    let mut unlucky = connect(&path);
    unlucky.write_all(b"set=1\nlisten_port=7\n\n").expect("sent");
    assert_eq!(unlucky.read(&mut [0]).expect("closed, not left hanging"), 0);
    assert_eq!(ask(&mut connect(&path), "get=1\n\n"), "errno=0\n\n");
    fs::remove_file(&path).expect("removed");
    assert!(matches!(thread.join().expect("no panic outside the task"), ControlSocketEnd::FileRemoved(_)));
    let log = std::io::read_to_string(log).expect("text");
    assert!(log.contains("a fault in wgd") && log.contains("panicked"), "{log}");
}

#[test]
fn a_client_that_has_said_all_is_still_answered_and_may_leave_without_a_word() {
    let served = Served::new();
    drop(served.connect());
    let mut client = served.connect();
    client.write_all(format!("set=1\npublic_key={}", public_key(1)).as_bytes()).expect("sent");
    client.shutdown(Shutdown::Write).expect("half closed");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "errno=0\n\n");
}

#[test]
fn a_socket_handed_over_is_served_if_it_listens_and_so_is_one_connected_client() {
    let directory = TempDir::new().expect("a directory");
    let path = control_socket::path_of(directory.path(), &name());
    let listener = UnixListener::bind(&path).expect("bound");
    let socket = ControlSocket::from_fd(OwnedFd::from(listener), directory.path(), &name()).expect("taken");
    let thread = serve(socket);
    assert_eq!(ask(&mut connect(&path), "get=1\n\n"), "errno=0\n\n");
    fs::remove_file(&path).expect("removed");
    assert!(matches!(thread.join().expect("no panic"), ControlSocketEnd::FileRemoved(_)));

    // By another name of the same directory it is the same socket.
    let link = directory.path().with_extension("link");
    std::os::unix::fs::symlink(directory.path(), &link).expect("linked");
    let listener = UnixListener::bind(link.join("wg0.sock")).expect("bound");
    let socket = ControlSocket::from_fd(OwnedFd::from(listener), directory.path(), &name()).expect("taken");
    drop(socket);
    fs::remove_file(&link).expect("removed");
    assert!(!path.exists(), "the end of the instance removes it");

    // What lies elsewhere belongs to somebody else.
    let elsewhere = directory.path().join("elsewhere.sock");
    fs::write(&path, "precious").expect("written");
    let listener = UnixListener::bind(&elsewhere).expect("bound");
    drop(ControlSocket::from_fd(OwnedFd::from(listener), directory.path(), &name()).expect("taken"));
    assert!(elsewhere.exists() && path.exists());

    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    ours.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let socket = ControlSocket::from_fd(OwnedFd::from(theirs), directory.path(), &name()).expect("taken");
    let thread = serve(socket);
    assert_eq!(ask(&mut ours, "get=1\n\n"), "errno=0\n\n");
    assert_eq!(ask(&mut ours, "set=1\n\n"), "errno=0\n\n");
    drop(ours);
    assert!(matches!(thread.join().expect("no panic"), ControlSocketEnd::ClientGone));
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused_with_the_name_of_its_variable() {
    let directory = TempDir::new().expect("a directory");
    let file = fs::File::open("/dev/null").expect("there");
    let refusal = ControlSocket::from_fd(OwnedFd::from(file), directory.path(), &name()).expect_err("not a socket");
    assert!(refusal.to_string().contains("WG_UAPI_FD"), "{refusal}");
}
