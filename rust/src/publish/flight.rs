//! A group of messages in flight to PostgreSQL, until each message is committed, refused, or back in the buffer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::connect::notify_queue;
use crate::connect::session::OpenConnection;
use crate::error::{Error, Result};
use crate::publish::buffer::{Buffer, Outgoing};
use crate::publish::statement;
use crate::receive::attachment::AttachmentTable;
use crate::receive::echo::Echo;
use crate::wire::codec::Encoded;

/// A stack of the parts still to be sent; the next part is the last one. However the flight ends, also by an error or
/// by the deadline of `Publisher::close`, every message is settled or back in the buffer afterwards.
pub struct Flight<'a> {
    buffer: &'a Buffer,
    connection: &'a Arc<OpenConnection>,
    table: &'a AttachmentTable,
    echo: &'a Echo,
    parts: Vec<Vec<Outgoing>>,
    /// Whether the last part may have reached the server.
    is_sending: bool,
}

impl<'a> Flight<'a> {
    /// Take the next group out of the buffer. It will be sent through `connection`.
    pub fn take(
        buffer: &'a Buffer,
        connection: &'a Arc<OpenConnection>,
        table: &'a AttachmentTable,
        echo: &'a Echo,
    ) -> Self {
        let group = buffer.lock().take_group();
        Self { buffer, connection, table, echo, parts: vec![group], is_sending: false }
    }

    /// Replace the encoding of every message for which `spell` returns another one. Messages for which `spell` fails
    /// are failed.
    pub fn respell(&mut self, spell: impl Fn(&Outgoing) -> Result<Option<Encoded>>) {
        for part in &mut self.parts {
            let mut rest = Vec::with_capacity(part.len());
            for mut outgoing in std::mem::take(part) {
                match spell(&outgoing) {
                    Ok(None) => rest.push(outgoing),
                    Ok(Some(wire)) => {
                        self.buffer.lock().replace(&mut outgoing, wire);
                        rest.push(outgoing);
                    }
                    Err(error) => self.buffer.settle(vec![outgoing], &Err(error)),
                }
            }
            *part = rest;
        }
    }

    /// Commit the group. `Err` means that the connection must not be used any more.
    pub async fn commit(mut self) -> Result<()> {
        self.prepare().await?;
        let (mut has_looked_again, mut has_tidied) = (false, false);
        while let Some(group) = self.parts.last() {
            if group.is_empty() {
                self.parts.pop();
                continue;
            }
            let began = Instant::now();
            self.is_sending = true;
            let sent_bytes = group.iter().map(Outgoing::size_bytes).sum();
            let work = |client| statement::commit(client, self.table, group);
            let sent = self.connection.commit("commit messages", sent_bytes, work).await;
            self.is_sending = sent.as_ref().is_err_and(is_lost_under_way);
            match sent {
                Ok(()) => {
                    self.buffer.outage.ended(); // before any caller learns of the commit
                    expect_echo(self.echo, group, began);
                    self.settle(&Ok(()));
                }
                Err(error) if is_lost_under_way(&error) => {
                    self.settle(&Err(in_doubt(&reason_of(&error))));
                    return Err(error);
                }
                // Nothing was sent. Look for the table again, which creates it if allowed, or reports that it is
                // missing. Only once, because a trigger that writes to another, missing table causes the same error.
                Err(error) if !has_looked_again && self.table.forget_if_gone(&error).await => {
                    has_looked_again = true;
                    self.prepare().await?;
                }
                Err(error) if statement::is_queue_full(&error) && !std::mem::replace(&mut has_tidied, true) => {
                    match self.connection.ask("tidy the notification queue", notify_queue::tidy).await {
                        Err(error) if error.is_transient() || error.is_connection_lost() => return Err(error),
                        _ => {} // the next attempt decides
                    }
                }
                // The server refused before committing: nothing was sent, and another attempt may succeed.
                Err(error) if error.is_transient() => return Err(error),
                Err(error)
                    if group.len() > 1 && (statement::is_about_one_message(&error, group) || is_mixed(group)) =>
                {
                    let mut first = self.parts.pop().unwrap_or_default();
                    let second = first.split_off(first.len() / 2);
                    self.parts.extend([second, first]);
                }
                Err(error) => self.settle(&Err(error)),
            }
        }
        Ok(())
    }

    /// Look for the attachment table if a message needs it. Without the table those messages fail, and the others are
    /// sent.
    async fn prepare(&mut self) -> Result<()> {
        if self.parts.iter().flatten().any(Outgoing::is_attachment)
            && let Err(error) =
                self.connection.ask("look up the attachment table", |client| self.table.ensure(client)).await
        {
            if error.is_transient() || error.is_connection_lost() {
                return Err(error);
            }
            let group: Vec<Outgoing> = self.parts.drain(..).rev().flatten().collect();
            let (refused, rest) = group.into_iter().partition(Outgoing::is_attachment);
            self.buffer.settle(refused, &Err(error));
            self.parts.push(rest);
        }
        Ok(())
    }

    /// Settle the last part.
    fn settle(&mut self, result: &Result<()>) {
        self.is_sending = false;
        if let Some(group) = self.parts.pop() {
            self.buffer.settle(group, result);
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if self.is_sending {
            self.settle(&Err(in_doubt("the publisher was closed while a commit was under way")));
        }
        self.buffer.lock().put_back(std::mem::take(&mut self.parts).into_iter().rev().flatten().collect());
    }
}

/// Tell `echo` to expect this group: this server's own listener receives it, unless its session is deaf.
fn expect_echo(echo: &Echo, group: &[Outgoing], began: Instant) {
    let mut last: HashMap<&str, u64> = HashMap::new();
    for (channel, number) in group.iter().filter_map(|each| Some((each.channel.as_str(), each.sequence?))) {
        last.insert(channel, number);
    }
    for (channel, number) in last {
        echo.committed(channel, number, began, Instant::now());
    }
}

/// Whether the group has messages with and without an attachment, so that an error of the attachment table would fail
/// messages that do not need it.
fn is_mixed(group: &[Outgoing]) -> bool {
    group.iter().any(Outgoing::is_attachment) && !group.iter().all(Outgoing::is_attachment)
}

/// Whether a commit may have reached the server. If not, the connection was given up before the commit was sent.
fn is_lost_under_way(error: &Error) -> bool {
    error.is_connection_lost() && !matches!(error, Error::ConnectionLost { may_be_sent: false, .. })
}

/// The error's reason without its context, which is always a commit.
fn reason_of(error: &Error) -> String {
    match error {
        Error::ConnectionLost { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

fn in_doubt(reason: &str) -> Error {
    Error::ConnectionLost { context: "commit messages".to_owned(), reason: reason.to_owned(), may_be_sent: true }
}
