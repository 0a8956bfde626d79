//! Waiting for an answer for as long as bytes move on the connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::lock::Mutex;

/// The time when bytes last moved on one connection, in either direction.
#[derive(Default)]
pub struct Pulse {
    moved_at: Mutex<Option<Instant>>,
    /// Whether a request was made since the driver was last polled.
    is_asked: AtomicBool,
    alarm: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl Pulse {
    /// Record that the driver was woken, either by the socket or by a new request. A wake-up by a request says nothing
    /// about the network.
    pub fn woken(&self) {
        if !self.is_asked.swap(false, Ordering::Relaxed) {
            *self.moved_at.lock() = Some(Instant::now());
        }
    }

    /// Record that a request is about to be made.
    pub fn asked(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }

    /// The time when bytes last moved.
    pub fn moved_at(&self) -> Option<Instant> {
        *self.moved_at.lock()
    }

    /// The result of `work`, or `None` once nothing has moved for `limit`. A healthy session is never given up, however
    /// large the answer or slow the network.
    pub async fn unless_silent<F: Future + Unpin>(&self, limit: Duration, work: &mut F) -> Option<F::Output> {
        let mut deadline = Instant::now() + limit;
        let mut alarm = self.alarm(deadline);
        let result = loop {
            tokio::select! {
                biased;
                result = &mut *work => break Some(result),
                () = &mut alarm => {}
            }
            match self.moved_at().map(|at| at + limit).filter(|later| *later > deadline) {
                Some(later) => deadline = later,
                None => break None,
            }
            alarm.as_mut().reset(deadline);
        };
        *self.alarm.lock() = Some(alarm);
        result
    }

    /// A timer for `deadline`: the previous one if it is not in use, otherwise a new one. Postponing an existing timer
    /// costs next to nothing. A new timer wakes the sleeping runtime thread, which costs two system calls per request.
    fn alarm(&self, deadline: Instant) -> Pin<Box<Sleep>> {
        match self.alarm.lock().take() {
            Some(mut alarm) => {
                alarm.as_mut().reset(deadline);
                alarm
            }
            None => Box::pin(sleep_until(deadline)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Make a request that is answered after `seconds`.
    async fn ask(pulse: &Pulse, seconds: u64) -> Option<u64> {
        pulse.asked();
        let work = async {
            pulse.woken(); // as the driver is by every request
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            seconds
        };
        pulse.unless_silent(LIMIT, &mut pin!(work)).await
    }

    /// Move bytes on the connection `times` times, every `seconds` seconds.
    fn move_bytes(pulse: &Arc<Pulse>, seconds: u64, times: u64) {
        let pulse = Arc::clone(pulse);
        tokio::spawn(async move {
            for _ in 0..times {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                pulse.woken();
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_wait() {
        let pulse = Pulse::default();
        assert_eq!(ask(&pulse, 9).await, Some(9));
        let began = Instant::now();
        assert_eq!(ask(&pulse, 11).await, None);
        assert_eq!(began.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_has_its_own_time() {
        let pulse = Pulse::default();
        assert_eq!(ask(&pulse, 9).await, Some(9));
        assert_eq!(tokio::join!(ask(&pulse, 8), ask(&pulse, 5)), (Some(8), Some(5)));
        for _ in 0..2 {
            let began = Instant::now();
            assert_eq!(ask(&pulse, 99).await, None);
            assert_eq!(began.elapsed().as_secs(), 10);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_on_a_slow_link_is_waited_for() {
        let pulse = Arc::new(Pulse::default());
        move_bytes(&pulse, 9, 10);
        assert_eq!(ask(&pulse, 95).await, Some(95));
        let began = Instant::now();
        move_bytes(&pulse, 7, 3);
        assert_eq!(ask(&pulse, 99).await, None);
        assert_eq!(began.elapsed().as_secs(), 3 * 7 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_others_are_no_sign_of_life() {
        let pulse = Arc::new(Pulse::default());
        let others = Arc::clone(&pulse);
        tokio::spawn(async move {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let one = Arc::clone(&others);
                tokio::spawn(async move { ask(&one, 99).await });
            }
        });
        assert_eq!(ask(&pulse, 15).await, None);
    }
}
