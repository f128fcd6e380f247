//! A command inside a container for somebody who sits at it: the engine runs it, and its input and output go through the
//! engine's connection.

use std::io::{self, Read, Write};
use std::pin::Pin;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures_util::{StreamExt, stream};
use palisade_core::instance::{ContainerProgram, InstanceSpec};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Engine, EngineError};
use crate::runtime::Attach;
use crate::terminal::{Raw, Signals, size};

/// What happens while the command runs.
enum Event {
    Typed(Vec<u8>),
    InputEnded,
    Signal(i32),
    Printed(Result<LogOutput, bollard::errors::Error>),
    Ended,
}

/// Runs the command and waits for its end; returns its exit code.
pub(crate) fn attach(
    spec: &InstanceSpec,
    program: &ContainerProgram,
    attach: &Attach,
    signals: Signals,
) -> Result<i32, EngineError> {
    let engine = Engine::connect(&program.socket)?;
    let name = &program.name;
    let operation = || format!("run a command in {name}");
    let config = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(attach.terminal),
        cmd: Some(attach.command.clone()),
        user: program.settings.user.clone(),
        env: Some(spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: program.settings.working_dir.as_ref().map(|path| path.to_string_lossy().into_owned()),
        ..CreateExecOptions::<String>::default()
    };
    let made = engine.ask(operation, engine.docker.create_exec(name, config))?;
    let local = |source| EngineError::Local { operation: "use the terminal".to_owned(), source };
    let _raw = if attach.terminal { Raw::of_stdin().map_err(local)? } else { None };
    let run = async {
        let options = StartExecOptions { detach: false, tty: attach.terminal, output_capacity: None };
        let started = engine.docker.start_exec(&made.id, Some(options)).await?;
        if let StartExecResults::Attached { output, input } = started {
            let (sender, receiver) = channel(16);
            listen(sender, signals)?;
            let printed = output.map(Event::Printed).chain(stream::iter([Event::Ended]));
            let happens = stream::select(printed, events(receiver));
            engine.relay(&made.id, attach.terminal, Box::pin(happens), input).await?;
        }
        let code = engine.docker.inspect_exec(&made.id).await?.exit_code;
        Ok(code.map_or(255, |code| code as i32))
    };
    engine.ask(operation, run)
}

/// Reads standard input and signals on threads of their own, which nobody waits for.
fn listen(sender: Sender<Event>, signals: Signals) -> io::Result<()> {
    let typed = sender.clone();
    std::thread::Builder::new().name("input".into()).spawn(move || {
        let mut buffer = [0u8; 8 << 10];
        while let Ok(length) = io::stdin().read(&mut buffer) {
            let event = if length == 0 { Event::InputEnded } else { Event::Typed(buffer[..length].to_vec()) };
            if typed.blocking_send(event).is_err() || length == 0 {
                return;
            }
        }
    })?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || while sender.blocking_send(Event::Signal(signals.wait())).is_ok() {})?;
    Ok(())
}

fn events(receiver: Receiver<Event>) -> impl stream::Stream<Item = Event> {
    stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|event| (event, receiver)))
}

impl Engine {
    async fn relay(
        &self,
        id: &str,
        terminal: bool,
        mut happens: Pin<Box<impl stream::Stream<Item = Event>>>,
        input: Pin<Box<dyn AsyncWrite + Send>>,
    ) -> Result<(), bollard::errors::Error> {
        self.resize(id, terminal).await;
        let mut input = Some(input);
        while let Some(event) = happens.next().await {
            match event {
                Event::Typed(bytes) => {
                    // A command that reads no more is no reason to stop showing what it prints.
                    if let Some(to) = &mut input
                        && (to.write_all(&bytes).await.is_err() || to.flush().await.is_err())
                    {
                        input = None;
                    }
                }
                Event::InputEnded => {
                    if let Some(mut to) = input.take() {
                        let _ = to.shutdown().await;
                        // Kept: the engine takes a closed connection for the end of everything.
                        input = Some(to);
                    }
                }
                Event::Printed(piece) => show(piece?)?,
                Event::Signal(libc::SIGWINCH) => self.resize(id, terminal).await,
                Event::Signal(signal) => {
                    let asked = self.docker.inspect_exec(id).await?;
                    if let Some(pid) = asked.pid.filter(|pid| *pid > 0 && asked.running == Some(true)) {
                        // SAFETY: takes two integers. The engine has no way to send a signal.
                        unsafe { libc::kill(pid as i32, signal) };
                    }
                }
                Event::Ended => return Ok(()),
            }
        }
        Ok(())
    }

    async fn resize(&self, id: &str, terminal: bool) {
        if let Some(size) = size().filter(|_| terminal) {
            // A wrong size is ugly and no more.
            let options = ResizeExecOptions { height: size.ws_row, width: size.ws_col };
            let _ = self.docker.resize_exec(id, options).await;
        }
    }
}

fn show(piece: LogOutput) -> io::Result<()> {
    match piece {
        LogOutput::StdErr { message } => io::stderr().write_all(&message),
        LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => {
            let mut out = io::stdout().lock();
            out.write_all(&message).and_then(|()| out.flush())
        }
    }
}
