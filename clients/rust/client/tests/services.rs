//! The client against running services. Tests that need them are ignored by default:
//!
//! `ML_ENDPOINT=http://localhost:50051 ML_PICTURES=../../../models/pictures ML_CHAT=org/name cargo test -- --ignored`

use std::env;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use ml_client::proto::{ChatMessage, ChatRequest, ResponseFormat, SkipReason, VideoFrame};
use ml_client::tonic::Code;
use ml_client::{Client, Error, FramePolicy, Load, Skipped, VideoOptions, tasks};

// Nothing listens on the port of tcpmux.
const NOTHING_LISTENS: &str = "http://127.0.0.1:1";

async fn client() -> Client {
    let endpoint = env::var("ML_ENDPOINT").expect("ML_ENDPOINT says where the services are");
    Client::connect(endpoint)
        .await
        .expect("something listens there")
}

/// A picture with one face.
fn picture() -> Bytes {
    let folder = env::var("ML_PICTURES").expect("ML_PICTURES is a folder of pictures");
    let path = Path::new(&folder).join("astronaut.png");
    std::fs::read(path).expect("there is a picture").into()
}

/// The same picture again and again, and how often it was taken.
fn video(
    count: usize,
) -> (
    impl Stream<Item = VideoFrame> + Send + 'static,
    Arc<AtomicUsize>,
) {
    let taken = Arc::new(AtomicUsize::new(0));
    let (counter, data) = (Arc::clone(&taken), picture());
    let frames = stream::iter(0..).take(count).map(move |number| {
        counter.fetch_add(1, Ordering::SeqCst);
        frame(data.clone(), number)
    });
    (frames, taken)
}

fn frame(frame_data: Bytes, frame_number: i32) -> VideoFrame {
    VideoFrame {
        frame_data,
        format: "png".into(),
        frame_number,
        timestamp_ms: i64::from(frame_number) * 33,
        ..Default::default()
    }
}

#[tokio::test]
async fn nothing_listens() {
    let eager = Client::connect(NOTHING_LISTENS)
        .await
        .expect_err("nothing listens");
    assert!(matches!(eager, Error::Transport(_)), "{eager:?}");
    assert!(eager.is_retryable());

    let lazy = Client::connect_lazy(NOTHING_LISTENS).expect("the address is one");
    let error = lazy.loaded().await.expect_err("nothing listens");
    assert_eq!(error.call().map(|call| call.code), Some(Code::Unavailable));
    assert!(error.is_retryable());
}

#[tokio::test]
async fn an_invalid_address_is_refused() {
    assert!(Client::connect("not an address").await.is_err());
    assert!(Client::connect_lazy("not an address").is_err());
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT"]
async fn an_error_has_its_reason() {
    let error = client()
        .await
        .embed("no/such", ["a"])
        .await
        .expect_err("it is not loaded");
    assert_eq!(
        error.call().map(|call| call.code),
        Some(Code::FailedPrecondition)
    );
    assert_eq!(error.reason(), Some("MODEL_NOT_LOADED"));
    assert!(!error.is_retryable());
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT"]
async fn an_error_names_the_field() {
    let error = client()
        .await
        .load("", "text-generation")
        .await
        .expect_err("it has no name");
    let call = error.call().expect("the services said it");
    assert_eq!(call.code, Code::InvalidArgument);
    let fields: Vec<_> = call.fields.iter().map(|each| each.field.as_str()).collect();
    assert_eq!(fields, ["model_id"]);
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT and ML_CHAT"]
async fn answers_have_what_was_asked_for() {
    let client = client().await;
    let model = env::var("ML_CHAT").expect("ML_CHAT is a model that chats");
    let load = Load::new(&model).priority(1);
    let loaded = client.load_model(load).await.expect("it is loaded");
    assert_eq!(loaded.status.map(|status| status.priority), Some(1));

    let request = ChatRequest {
        model,
        messages: vec![ChatMessage::user("Name a colour.")],
        response_format: Some(ResponseFormat::choice(["red", "blue"])),
        temperature: Some(1.0),
        n: 2,
        logprobs: true,
        ..Default::default()
    };
    let count = client.count_tokens(&request).await.expect("it is counted");
    let generation = client.chat(request).await.expect("it is answered");
    let answers = generation.answers().await.expect("it is answered");
    assert_eq!(answers.len(), 2);
    for answer in answers {
        assert!(
            ["red", "blue"].contains(&answer.text.as_str()),
            "{answer:?}"
        );
        let bytes: Vec<_> = answer
            .logprobs
            .iter()
            .flat_map(|token| token.utf8.to_vec())
            .collect();
        assert_eq!(bytes, answer.text.as_bytes());
        assert_eq!(answer.finish.usage.prompt_tokens, count.tokens);
    }
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT and ML_PICTURES"]
async fn a_broken_frame_is_skipped_where_that_is_asked_for() {
    let frames = stream::iter([
        frame(Bytes::from_static(b"no picture"), 0),
        frame(picture(), 1),
    ]);
    let options = VideoOptions::default().skip_bad_frames(true);
    let answers = client().await.follow(tasks::Faces, frames, &options);
    let answers: Vec<_> = answers.try_collect().await.expect("one is skipped");
    let skips: Vec<_> = answers
        .iter()
        .map(|answer| answer.skip().map(|skip| skip.reason))
        .collect();
    assert_eq!(skips, [Some(SkipReason::BadFrame), None]);
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT and ML_PICTURES"]
async fn detects_in_pictures() {
    let client = client().await;
    let faces = client
        .detect_faces(picture(), "png")
        .await
        .expect("it is a picture");
    assert_eq!(faces.len(), 1);
    let poses = client
        .detect_pose(picture(), "png")
        .await
        .expect("it is a picture");
    assert_eq!(poses[0].landmarks.len(), 33);
    client
        .detect_hands(picture(), "png")
        .await
        .expect("it is a picture");
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT and ML_PICTURES"]
async fn a_video_is_answered_in_order_with_a_limit_on_frames_in_flight() {
    let (frames, taken) = video(20);
    let options = VideoOptions::default().in_flight(3);
    let mut answers = client().await.follow(tasks::Faces, frames, &options);
    let mut answered = 0;
    while let Some(answer) = answers.try_next().await.expect("every frame is a picture") {
        assert_eq!(answer.frame_number, i32::try_from(answered).expect("a few"));
        assert_eq!(answer.timestamp_ms, i64::from(answer.frame_number) * 33);
        assert_eq!(answer.faces.len(), 1);
        // The place of this answer may already be taken again.
        answered += 1;
        assert!(taken.load(Ordering::SeqCst) <= answered + 3);
    }
    assert_eq!(answered, 20);
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT and ML_PICTURES"]
async fn the_newest_frame_is_answered_with_policy_latest() {
    let (frames, _) = video(60);
    let options = VideoOptions::default()
        .in_flight(30)
        .policy(FramePolicy::Latest);
    let answers = client().await.follow(tasks::FaceMesh, frames, &options);
    let answers: Vec<_> = answers
        .try_collect()
        .await
        .expect("every frame is a picture");
    let last = answers.last().expect("there are answers");
    assert_eq!(last.frame_number, 59);
    let dropped = usize::try_from(last.frames_dropped).expect("a count");
    assert_eq!(answers.len() + dropped, 60);
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT and ML_PICTURES"]
async fn a_broken_frame_ends_a_video_after_the_answers_before_it() {
    let frames = stream::iter([
        frame(picture(), 0),
        frame(picture(), 1),
        frame(Bytes::from_static(b"no picture"), 2),
    ]);
    let options = VideoOptions::default();
    let mut answers = client().await.follow(tasks::Faces, frames, &options);
    for number in 0..2 {
        let answer = answers.next().await.expect("an answer").expect("a picture");
        assert_eq!(answer.frame_number, number);
    }
    let error = answers
        .next()
        .await
        .expect("an end")
        .expect_err("no picture");
    assert_eq!(error.reason(), Some("UNDECODABLE_IMAGE"));
    assert!(answers.next().await.is_none());
}

#[tokio::test]
#[ignore = "needs ML_ENDPOINT"]
async fn a_response_over_the_4_mib_default_of_tonic_is_received() {
    let (width, height) = (2400, 2000);
    let pixels = vec![128; 2400 * 2000];
    let frame = VideoFrame {
        frame_data: pixels.into(),
        format: "gray".into(),
        width,
        height,
        ..Default::default()
    };
    let frames = stream::iter([frame]);
    let options = VideoOptions::default();
    let mut answers = client().await.follow(tasks::Selfie, frames, &options);
    let answer = answers
        .next()
        .await
        .expect("an answer")
        .expect("it is received");
    assert_eq!(answer.mask.len(), 2400 * 2000);
}
