//! Video: a stream of frames in, a stream of results out, with a limit on the frames in flight.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::proto::mediapipe_service_client::MediapipeServiceClient;
use crate::proto::{
    MediaSequenceFrame, MediaSequenceResponse, SkipReason, TemplateMatchingRequest,
    TemplateMatchingResponse, VideoFrame,
};
use crate::window::{Frames, Window, bounded};

type Call<A> = BoxFuture<'static, Result<Response<Streaming<A>>, Status>>;

/// What happens to frames that arrive faster than they are processed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FramePolicy {
    /// Every frame is answered; the sender is slowed down.
    #[default]
    Every,
    /// A newer frame replaces the waiting one; `frames_dropped` of a response counts the replaced.
    Latest,
}

/// How a video is sent. The task's own options go into the first frame's `metadata`.
///
/// # Example
///
/// ```
/// use ml_client::{FramePolicy, VideoOptions};
///
/// let options = VideoOptions::default().in_flight(2).policy(FramePolicy::Latest);
/// assert_eq!(options.in_flight, 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VideoOptions {
    /// At most this many frames are sent and not yet answered. 1 has the lowest latency; with a few,
    /// one frame is decoded while another is processed. With more, frames are old when their turn
    /// comes.
    pub in_flight: usize,
    /// What happens to frames that arrive too fast.
    pub policy: FramePolicy,
    /// A frame that cannot be decoded is answered as skipped, see [`Skipped`]; otherwise it ends the
    /// stream.
    pub skip_bad_frames: bool,
}

impl Default for VideoOptions {
    fn default() -> Self {
        Self {
            in_flight: 4,
            policy: FramePolicy::Every,
            skip_bad_frames: false,
        }
    }
}

impl VideoOptions {
    /// Sets the largest number of frames in flight; 0 counts as 1.
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

    /// Sets whether a frame that cannot be decoded is answered as skipped.
    #[must_use]
    pub fn skip_bad_frames(mut self, skip: bool) -> Self {
        self.skip_bad_frames = skip;
        self
    }
}

/// Why an answer has no result of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skip<'a> {
    /// Why.
    pub reason: SkipReason,
    /// A sentence for people.
    pub message: &'a str,
}

/// An answer to a frame, which may have been skipped.
pub trait Skipped {
    /// Why the frame has no result; None if this is the result.
    ///
    /// # Example
    ///
    /// ```
    /// use ml_client::Skipped;
    /// use ml_client::proto::{FaceDetectionResponse, SkipReason};
    ///
    /// let answer = FaceDetectionResponse {
    ///     skipped: SkipReason::BadFrame.into(),
    ///     skip_message: "it is cut".into(),
    ///     ..Default::default()
    /// };
    /// let skip = answer.skip().expect("it has no result");
    /// assert_eq!((skip.reason, skip.message), (SkipReason::BadFrame, "it is cut"));
    /// assert!(FaceDetectionResponse::default().skip().is_none());
    /// ```
    fn skip(&self) -> Option<Skip<'_>>;
}

macro_rules! skipped {
    ($($answer:ident),+ $(,)?) => {
        $(
            impl Skipped for crate::proto::$answer {
                fn skip(&self) -> Option<Skip<'_>> {
                    let (reason, message) = (self.skipped(), self.skip_message.as_str());
                    (reason != SkipReason::Unspecified).then_some(Skip { reason, message })
                }
            }
        )+
    };
}

skipped! {
    FaceDetectionResponse, FaceMeshResponse, IrisTrackingResponse, HandDetectionResponse,
    PoseDetectionResponse, HolisticTrackingResponse, ObjectDetectionResponse,
    ObjectTrackingResponse, ObjectDetection3DResponse, SegmentationResponse,
    TemplateMatchingResponse, VideoFrame,
}

/// A vision task that processes a video; [`tasks`] has them all.
pub trait VideoTask: Copy + Send + 'static {
    /// The response to a frame.
    type Answer: Skipped + Send + 'static;
    /// The name of its RPC.
    const RPC: &'static str;
    /// Starts the call.
    fn call(stub: MediapipeServiceClient<Channel>, frames: Request<Frames>) -> Call<Self::Answer>;
    /// The number of the frame that the response belongs to.
    fn frame_number(answer: &Self::Answer) -> i32;
    /// Frames of the stream that newer ones have replaced so far.
    fn frames_dropped(answer: &Self::Answer) -> i64;
}

macro_rules! video_tasks {
    ($($(#[$doc:meta])+ $task:ident, $rpc:ident, $call:ident, $answer:ident;)+) => {
        /// The vision tasks, for [`Client::follow`](crate::Client::follow).
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
    /// Faces, with six key points each.
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
    /// Objects with their labels.
    Objects, StreamObjectDetection, stream_object_detection, ObjectDetectionResponse;
    /// Objects with ids that outlast occlusions.
    ObjectTracks, StreamObjectTracking, stream_object_tracking, ObjectTrackingResponse;
    /// The boxes in 3D of sneakers, chairs, cups or cameras.
    Objects3D, StreamObjectDetection3D, stream_object_detection3_d, ObjectDetection3DResponse;
    /// People against background, as a mask for each frame.
    Selfie, StreamSelfieSegmentation, stream_selfie_segmentation, SegmentationResponse;
    /// Hair, as a mask for each frame.
    Hair, StreamHairSegmentation, stream_hair_segmentation, SegmentationResponse;
    /// The video cropped to another aspect ratio. With the option `look_ahead`, more frames than that
    /// must be in flight ([`VideoOptions::in_flight`]).
    AutoFlip, StreamAutoFlip, stream_auto_flip, VideoFrame;
}

impl Client {
    /// Runs a vision task on a video and returns a stream of its results.
    ///
    /// The next frame is taken from `frames` while fewer than [`VideoOptions::in_flight`] are in
    /// flight, so a camera is read at the pace of the results. Set `frame_number` if some frames
    /// show no picture, as in some H.264 and VP8 videos. With [`FramePolicy::Latest`] a replaced
    /// frame stays in flight until the next result. The call starts when the stream is first polled.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use futures_util::{Stream, TryStreamExt};
    /// use ml_client::{Client, Error, VideoOptions, proto::VideoFrame, tasks};
    ///
    /// # async fn run(
    /// #     client: Client,
    /// #     camera: impl Stream<Item = VideoFrame> + Send + 'static,
    /// # ) -> Result<(), Error> {
    /// let options = VideoOptions::default();
    /// let mut results = client.follow(tasks::Faces, camera, &options);
    /// while let Some(result) = results.try_next().await? {
    ///     println!("frame {}: {} faces", result.frame_number, result.faces.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn follow<T: VideoTask>(
        &self,
        _task: T,
        frames: impl Stream<Item = VideoFrame> + Send + 'static,
        options: &VideoOptions,
    ) -> Answers<T::Answer> {
        let window = Arc::new(Window::new(options.in_flight));
        // Options are read from the first frame.
        let mut skip = options.skip_bad_frames;
        let frames = frames.map(move |mut frame| {
            if mem::take(&mut skip) {
                frame.metadata.insert("on_bad_frame".into(), "skip".into());
            }
            frame
        });
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

    /// Finds a template in each frame of a video and returns a stream of its places.
    ///
    /// The template and the threshold come with the first request; later ones may leave them out, or
    /// change them. `requests` is read as fast as the service takes it.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use futures_util::{TryStreamExt, stream};
    /// use ml_client::{Client, Error, proto::TemplateMatchingRequest};
    ///
    /// # async fn run(client: Client, frame: Vec<u8>, template: Vec<u8>) -> Result<(), Error> {
    /// let request = TemplateMatchingRequest {
    ///     frame_data: frame.into(), // a JPEG, PNG or WebP
    ///     template_data: template.into(),
    ///     threshold: Some(0.9),
    ///     ..Default::default()
    /// };
    /// let mut results = client.match_templates(stream::iter([request]));
    /// while let Some(result) = results.try_next().await? {
    ///     for place in result.matches {
    ///         println!("at {} {}: {}", place.x, place.y, place.confidence);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn match_templates(
        &self,
        requests: impl Stream<Item = TemplateMatchingRequest> + Send + 'static,
    ) -> Answers<TemplateMatchingResponse> {
        let mut stub = self.vision();
        let call = async move { stub.stream_template_matching(requests).await };
        let answers = stream::once(call)
            .map_ok(Response::into_inner)
            .try_flatten()
            .map_err(Error::from);
        Answers(answers.boxed())
    }

    /// Sends a whole film and returns its shots, what is seen in them, and statistics of its features.
    ///
    /// # Errors
    ///
    /// [`Error`] with the status of the service: a frame or an option was refused, or a limit was
    /// reached.
    pub async fn media_sequence(
        &self,
        frames: impl Stream<Item = MediaSequenceFrame> + Send + 'static,
    ) -> Result<MediaSequenceResponse> {
        let answer = self.vision().process_media_sequence(frames).await?;
        Ok(answer.into_inner())
    }
}

/// The results for the frames of a video, in order. Dropping it cancels the call.
pub struct Answers<A>(BoxStream<'static, Result<A>>);

impl<A> Stream for Answers<A> {
    type Item = Result<A>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}
