//! Processes of the machine: ports, liveness, running a program, the unprivileged user.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tokio::process::Command;

use crate::EngineError;

/// A port of 127.0.0.1 that nobody listens on at this moment.
pub(crate) fn free_port() -> Result<u16, EngineError> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(EngineError::io("looking for a free port on", Path::new("127.0.0.1")))
}

/// Whether nobody listens on this port of 127.0.0.1.
pub(crate) fn is_port_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Whether a process with this number runs. One that has ended but was not yet collected does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    match kill(Pid::from_raw(pid), None) {
        Ok(()) | Err(Errno::EPERM) => process_state(pid) != Some('Z'),
        Err(_) => false,
    }
}

fn process_state(pid: i32) -> Option<char> {
    stat_field(pid, 3)?.chars().next()
}

/// When the process started, in clock ticks since the machine did. With the number it names a process for good.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    stat_field(pid, 22)?.parse().ok()
}

/// A field of `/proc/PID/stat`, counted from 1 as in proc(5), from the third on.
fn stat_field(pid: i32, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may itself hold spaces and brackets.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3).map(str::to_owned)
}

/// Makes the command's process the leader of a new session.
pub(crate) fn in_own_session(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: setsid is async-signal-safe, which is what a process between fork and exec may call.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
}

/// The folder of the workspace that this crate was built in.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a script of the workspace that prints one line, and returns the line.
pub(crate) async fn run_script(path: &str) -> Result<String, EngineError> {
    let printed = run(path, Command::new(workspace().join(path))).await?;
    Ok(printed.trim().to_owned())
}

/// Sends a signal; a process that is gone already is no error.
pub(crate) fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Waits until the process has ended; `false` when it still runs after `limit`.
pub(crate) async fn wait_until_gone(pid: i32, limit: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + limit;
    while is_alive(pid) {
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// The user that engines which refuse to run as root are run as; `None` for an ordinary user, who runs them itself.
#[derive(Debug, Clone)]
pub(crate) struct Unprivileged(Option<User>);

impl Unprivileged {
    /// Finds or makes the user.
    pub(crate) async fn find() -> Result<Self, EngineError> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Self(None));
        }
        for name in ["postgres", "kontorion"] {
            if let Ok(Some(user)) = User::from_name(name) {
                return Ok(Self(Some(user)));
            }
        }
        let mut useradd = Command::new("useradd");
        useradd.args(["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", "kontorion"]);
        run("useradd", useradd).await.map_err(|error| EngineError::NoUser(error.chain()))?;
        match User::from_name("kontorion") {
            Ok(Some(user)) => Ok(Self(Some(user))),
            _ => Err(EngineError::NoUser("useradd made no user kontorion".to_owned())),
        }
    }

    /// Hands a file or directory over to the user.
    pub(crate) fn own(&self, path: &Path) -> Result<(), EngineError> {
        let Some(user) = &self.0 else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .map_err(EngineError::io("changing the owner of", path))
    }

    /// A command that runs as the user, away from directories that it may not enter.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").env("LC_ALL", "C");
        if let Some(user) = &self.0 {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Fails when the user may not enter the directory, which a message of the engine would not say.
    // Asks the kernel through a process of that user: reading mode bits would miss access lists.
    pub(crate) async fn check_can_enter(&self, path: &Path) -> Result<(), EngineError> {
        let Some(user) = &self.0 else { return Ok(()) };
        let mut test = self.command("test");
        test.arg("-x").arg(path);
        run("test", test)
            .await
            .map(drop)
            .map_err(|_| EngineError::Unreachable { path: path.to_owned(), user: user.name.clone() })
    }
}

/// Runs a program to its end and returns what it printed; a failure carries the end of its output.
pub(crate) async fn run(name: &str, mut command: Command) -> Result<String, EngineError> {
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .map_err(EngineError::io("running", Path::new(name)))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = format!("{} {}", printed.trim(), errors.trim());
    let skipped = text.chars().count().saturating_sub(1_000);
    Err(EngineError::Program { program: name.to_owned(), output: text.chars().skip(skipped).collect() })
}
