//! The limit on the frames of a video in flight: sent and not yet answered.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use tokio::sync::Semaphore;

use crate::proto::VideoFrame;

/// The frames of one call.
pub struct Frames(BoxStream<'static, VideoFrame>);

impl Stream for Frames {
    type Item = VideoFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<VideoFrame>> {
        self.0.poll_next_unpin(context)
    }
}

/// The frames in flight.
pub struct Window {
    free: Semaphore,
    sent: Mutex<Sent>,
}

#[derive(Default)]
struct Sent {
    numbers: VecDeque<i32>,
    dropped: i64,
}

impl Window {
    pub fn new(in_flight: usize) -> Self {
        Self {
            free: Semaphore::new(in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            sent: Mutex::default(),
        }
    }

    /// Waits for a place.
    async fn enter(&self) {
        if let Ok(place) = self.free.acquire().await {
            place.forget();
        }
    }

    fn sent(&self, frame_number: i32) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.numbers.push_back(frame_number);
    }

    /// Frees the places of the frame and of those before it. Those get no answer: they showed no
    /// picture, or newer frames replaced them.
    pub fn answered(&self, frame_number: i32, dropped: i64) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = usize::try_from(dropped - sent.dropped).unwrap_or(0);
        sent.dropped = dropped;
        // Already freed: the video shows its pictures in another order than they were sent.
        let Some(place) = sent.numbers.iter().position(|sent| *sent == frame_number) else {
            return;
        };
        let over = (place.max(replaced) + 1).min(sent.numbers.len());
        sent.numbers.drain(..over);
        self.free.add_permits(over);
    }
}

/// Takes frames only while the window has free places.
pub fn bounded(
    frames: impl Stream<Item = VideoFrame> + Send + 'static,
    window: Arc<Window>,
) -> Frames {
    let state = (Box::pin(frames), window);
    let frames = stream::unfold(state, |(mut frames, window)| async move {
        window.enter().await;
        let frame = frames.next().await?;
        window.sent(frame.frame_number);
        Some((frame, (frames, window)))
    });
    Frames(frames.boxed())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn numbered(frame_number: i32) -> VideoFrame {
        VideoFrame {
            frame_number,
            ..Default::default()
        }
    }

    fn video(in_flight: usize, numbers: Vec<i32>) -> (Frames, Arc<Window>) {
        let window = Arc::new(Window::new(in_flight));
        let frames = stream::iter(numbers).map(numbered);
        (bounded(frames, Arc::clone(&window)), window)
    }

    /// How many frames the window lets through now.
    fn available(frames: &mut Frames) -> usize {
        std::iter::from_fn(|| frames.next().now_or_never().flatten()).count()
    }

    #[test]
    fn no_more_frames_than_allowed_are_in_flight() {
        let (mut frames, window) = video(3, (0..100).collect());
        assert_eq!(available(&mut frames), 3);
        window.answered(0, 0);
        assert_eq!(available(&mut frames), 1);
        window.answered(1, 0);
        window.answered(2, 0);
        assert_eq!(available(&mut frames), 2);
    }

    #[test]
    fn a_window_of_nothing_is_one_of_one() {
        let (mut frames, _) = video(0, vec![0, 1]);
        assert_eq!(available(&mut frames), 1);
    }

    #[test]
    fn frames_without_an_answer_do_not_keep_their_places() {
        let (mut frames, window) = video(4, (0..100).collect());
        assert_eq!(available(&mut frames), 4);
        window.answered(2, 0);
        assert_eq!(available(&mut frames), 3);
    }

    #[test]
    fn replaced_frames_do_not_keep_their_places_without_numbers_either() {
        let (mut frames, window) = video(4, vec![0; 100]);
        assert_eq!(available(&mut frames), 4);
        window.answered(0, 2);
        assert_eq!(available(&mut frames), 3);
        window.answered(0, 2);
        assert_eq!(available(&mut frames), 1);
    }

    #[test]
    fn pictures_in_another_order_give_each_place_back_once() {
        let (mut frames, window) = video(4, vec![0, 3, 1, 2, 4, 5, 6, 7, 8]);
        assert_eq!(available(&mut frames), 4);
        for number in 0..4 {
            window.answered(number, 0);
        }
        assert_eq!(available(&mut frames), 4);
    }

    #[test]
    fn a_number_that_was_never_sent_changes_nothing() {
        let (mut frames, window) = video(1, vec![0, 1]);
        assert_eq!(available(&mut frames), 1);
        window.answered(9, 0);
        assert_eq!(available(&mut frames), 0);
    }
}
