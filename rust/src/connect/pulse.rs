//! How long to wait for an answer: as long as anything moves on the connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::lock::Mutex;

/// When bytes last moved on one connection, in either direction.
#[derive(Default)]
pub struct Pulse {
    moved_at: Mutex<Option<Instant>>,
    /// A request was made since the driver was polled last.
    is_asked: AtomicBool,
    alarm: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl Pulse {
    /// The driver was woken. That is the socket's doing, or that of a request, which says nothing about the link.
    pub fn woken(&self) {
        if !self.is_asked.swap(false, Ordering::Relaxed) {
            *self.moved_at.lock() = Some(Instant::now());
        }
    }

    /// A request is about to be made.
    pub fn asked(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }

    /// When bytes moved last.
    pub fn moved_at(&self) -> Option<Instant> {
        *self.moved_at.lock()
    }

    /// The result of `work`, or `None` once nothing has moved for `limit`. However large the answer and slow the link, a
    /// session that is well is not given up.
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

    /// One that was set before, if nobody else waits by it: to put an alarm off is next to nothing, and to set another
    /// wakes the thread that would have slept until then, two system calls for each request.
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

    /// Ask something that is answered after a while.
    async fn ask(pulse: &Pulse, seconds: u64) -> Option<u64> {
        pulse.asked();
        let work = async {
            pulse.woken(); // as the driver is by every request
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            seconds
        };
        pulse.unless_silent(LIMIT, &mut pin!(work)).await
    }

    /// Bytes move on the connection once in so many seconds, so often.
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
