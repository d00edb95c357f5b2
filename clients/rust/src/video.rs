//! Video: frames out, an answer for each back, with a bound on how many are under way.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::proto::VideoFrame;
use crate::proto::mediapipe_service_client::MediapipeServiceClient;

type Call<A> = BoxFuture<'static, Result<Response<Streaming<A>>, Status>>;

/// What happens to frames that come faster than they are worked on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FramePolicy {
    /// Every frame has its answer, and the sender is slowed down.
    #[default]
    Every,
    /// A frame that waits is replaced by a newer one; `frames_dropped` of an answer counts them.
    Latest,
}

/// How a video is sent. The task's own options go into the first frame's `metadata`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VideoOptions {
    /// Frames that are sent and not answered yet, at most. 1 has the least latency; a few let one
    /// frame be decoded while another is worked on. More are old when their turn comes.
    pub in_flight: usize,
    /// What happens to frames that come too fast.
    pub policy: FramePolicy,
}

impl Default for VideoOptions {
    fn default() -> Self {
        Self {
            in_flight: 4,
            policy: FramePolicy::Every,
        }
    }
}

impl VideoOptions {
    /// Sets how many frames are under way at most; 0 counts as 1.
    #[must_use]
    pub fn in_flight(mut self, frames: usize) -> Self {
        self.in_flight = frames;
        self
    }

    /// Sets what happens to frames that come too fast.
    #[must_use]
    pub fn policy(mut self, policy: FramePolicy) -> Self {
        self.policy = policy;
        self
    }
}

/// A way to follow something through a video; [`tasks`] has them all.
pub trait VideoTask: Copy + Send + 'static {
    /// What a frame is answered with.
    type Answer: Send + 'static;
    /// Its RPC's name.
    const RPC: &'static str;
    /// Starts the call.
    fn call(stub: MediapipeServiceClient<Channel>, frames: Request<Frames>) -> Call<Self::Answer>;
    /// The number of the frame that is answered.
    fn frame_number(answer: &Self::Answer) -> i32;
    /// Frames of the stream that newer ones have replaced so far.
    fn frames_dropped(answer: &Self::Answer) -> i64;
}

macro_rules! video_tasks {
    ($($(#[$doc:meta])+ $task:ident, $rpc:ident, $call:ident, $answer:ident;)+) => {
        /// The tasks that a video can be given to, for [`Client::follow`](crate::Client::follow).
        pub mod tasks {
            $(
                $(#[$doc])+
                #[derive(Clone, Copy, Debug)]
                pub struct $task;
            )+
        }
        $(
            impl VideoTask for tasks::$task {
                type Answer = crate::proto::$answer;
                const RPC: &'static str = stringify!($rpc);

                fn call(
                    mut stub: MediapipeServiceClient<Channel>,
                    frames: Request<Frames>,
                ) -> Call<Self::Answer> {
                    Box::pin(async move { stub.$call(frames).await })
                }

                fn frame_number(answer: &Self::Answer) -> i32 {
                    answer.frame_number
                }

                fn frames_dropped(answer: &Self::Answer) -> i64 {
                    answer.frames_dropped
                }
            }
        )+
    };
}

video_tasks! {
    /// Faces, with six points each.
    Faces, StreamFaceDetection, stream_face_detection, FaceDetectionResponse;
    /// Faces, with a mesh of 478 points each.
    FaceMesh, StreamFaceMesh, stream_face_mesh, FaceMeshResponse;
    /// Eyes and their irises.
    Irises, StreamIrisTracking, stream_iris_tracking, IrisTrackingResponse;
    /// Hands and their gestures.
    Hands, StreamHandTracking, stream_hand_tracking, HandDetectionResponse;
    /// Body poses.
    Poses, StreamPoseTracking, stream_pose_tracking, PoseDetectionResponse;
    /// One person's face, pose and hands together.
    Holistic, StreamHolisticTracking, stream_holistic_tracking, HolisticTrackingResponse;
    /// People or background, a mask a frame.
    Selfie, StreamSelfieSegmentation, stream_selfie_segmentation, SegmentationResponse;
    /// Hair or not, a mask a frame.
    Hair, StreamHairSegmentation, stream_hair_segmentation, SegmentationResponse;
}

impl Client {
    /// Follows something through a video: `client.follow(tasks::Faces, frames, &options)`.
    ///
    /// The next frame is taken from `frames` when fewer than [`VideoOptions::in_flight`] are under
    /// way, so a camera behind it is read at the pace of the answers. Number the frames
    /// (`frame_number`) where not every one holds a picture, as in some H.264 and VP8 videos. Under
    /// [`FramePolicy::Latest`] a replaced frame is under way until the next answer. The call begins
    /// when the answers are first asked for.
    pub fn follow<T: VideoTask>(
        &self,
        _task: T,
        frames: impl Stream<Item = VideoFrame> + Send + 'static,
        options: &VideoOptions,
    ) -> Answers<T::Answer> {
        let window = Arc::new(Window::new(options.in_flight));
        let mut request = Request::new(bounded(frames, Arc::clone(&window)));
        if options.policy == FramePolicy::Latest {
            let policy = MetadataValue::from_static("latest");
            request.metadata_mut().insert("frame-policy", policy);
        }
        let call = T::call(self.vision(), request);
        let answers = stream::once(call)
            .map_ok(Response::into_inner)
            .try_flatten()
            .inspect_ok(move |answer| {
                window.answered(T::frame_number(answer), T::frames_dropped(answer));
            })
            .map_err(Error::from);
        Answers(answers.boxed())
    }
}

/// Answers to the frames of a video, in order. Dropping it cancels the call.
pub struct Answers<A>(BoxStream<'static, Result<A>>);

impl<A> Stream for Answers<A> {
    type Item = Result<A>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// The frames of one call.
pub struct Frames(BoxStream<'static, VideoFrame>);

impl Stream for Frames {
    type Item = VideoFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<VideoFrame>> {
        self.0.poll_next_unpin(context)
    }
}

/// The frames that are sent and not answered.
struct Window {
    free: Semaphore,
    sent: Mutex<Sent>,
}

#[derive(Default)]
struct Sent {
    numbers: VecDeque<i32>,
    dropped: i64,
}

impl Window {
    fn new(in_flight: usize) -> Self {
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

    /// Frees the places of the frame and of those before it, which have no answer: their pictures
    /// were hidden, or newer frames have replaced them.
    fn answered(&self, frame_number: i32, dropped: i64) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = usize::try_from(dropped - sent.dropped).unwrap_or(0);
        sent.dropped = dropped;
        // A video whose pictures are shown in another order than sent has let go of some before.
        let Some(place) = sent.numbers.iter().position(|sent| *sent == frame_number) else {
            return;
        };
        let over = (place.max(replaced) + 1).min(sent.numbers.len());
        sent.numbers.drain(..over);
        self.free.add_permits(over);
    }
}

/// Takes frames only while the window has places.
fn bounded(frames: impl Stream<Item = VideoFrame> + Send + 'static, window: Arc<Window>) -> Frames {
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

    /// How many frames can be had now.
    fn available(frames: &mut Frames) -> usize {
        std::iter::from_fn(|| frames.next().now_or_never().flatten()).count()
    }

    #[test]
    fn no_more_frames_than_allowed_are_under_way() {
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
