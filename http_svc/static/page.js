// The page on which a person tries the services. It calls what every client may call, through Envoy:
// the paths of OpenAI's interface, and RPCs with their messages as JSON.
"use strict";

const MODEL_MGMT = "/ml.ModelManagementService/";
const VISION = "/ml.MediapipeService/";
// Which types of models answer what; shared/pipelines.py has all.
const CHAT_TYPES = ["text-generation", "visual-language", "janus"];
const EMBEDDING_TYPES = ["feature-extraction"];
const UNDER_WAY = ["PENDING", "FETCHING", "CONVERTING", "LOADING"];
// A picture is made smaller before it is sent: a body of JSON has at most 4 MiB.
const MAX_EDGE = 1280;
const CAMERA = { width: { ideal: 640 }, height: { ideal: 480 } };
const JPEG_QUALITY = 0.85;
const MAX_TEXTS = 32;
// Between two tries to watch the models, in milliseconds.
const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 10000;

const at = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// An element with text and children; never markup, since models and services write the text.
function made(name, { text, kind, children = [], ...properties } = {}) {
  const element = Object.assign(document.createElement(name), properties);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  element.append(...children);
  return element;
}

// Calls

let key = ""; // in this page alone: never stored
const keyChanged = new EventTarget();

const BROKEN = "The connection broke before the answer was complete.";

// An error whose message is for the person.
class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// The answer to a POST whose status is 200; else a Problem.
async function post(path, message, signal) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", headers, body: JSON.stringify(message), signal, credentials: "omit", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The services cannot be reached: is the stack running?");
  }
  if (!answer.ok) throw await problem(answer);
  return answer;
}

// The same with the message of the answer.
async function ask(path, message, signal) {
  const answer = await post(path, message, signal);
  return answer.json().catch((error) => {
    throw error.name === "AbortError" ? error : new Problem(BROKEN);
  });
}

async function problem(answer) {
  const text = await answer.text();
  let said = text;
  try {
    const body = JSON.parse(text);
    said = body.error?.message ?? body.message ?? text;
  } catch { /* Envoy's own errors are text */ }
  if (answer.status === 401) {
    said = key ? "The API key is not known here." : "An API key is needed: it goes into the field at the top.";
  } else if (answer.status === 403 && said.startsWith("RBAC")) { // Envoy's word for a foreign page
    said = "Calls from this address are refused: the page works at http://localhost and http://127.0.0.1 alone.";
  }
  return new Problem(said || `The service answered with status ${answer.status}.`, answer.status);
}

// The lines of a body, as they come.
async function* linesOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      yield* lines;
    }
    if (rest) yield rest;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(BROKEN);
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Shows what went wrong in a message's place, or takes it away.
function tell(place, error) {
  if (error?.name === "AbortError") return;
  if (error && !(error instanceof Problem)) console.error(error);
  at(place).textContent = error ? (error instanceof Problem ? error.message : `The page has failed: ${error.message}`) : "";
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("key").value.trim();
  if (!/^[!-~]*$/.test(given)) { // a header cannot have it
    connection("The API key has characters that no key has.", "bad");
    return;
  }
  key = given;
  keyChanged.dispatchEvent(new Event("change"));
});

// Models

const models = new Map();
const rows = new Map();

function connection(text, kind) {
  const place = at("connection");
  if (place.textContent !== text) place.textContent = text;
  place.className = kind;
}

// Watches for as long as the page is seen: a browser has few connections to one address.
async function watchModels() {
  let sequence = "0", wait = FIRST_PAUSE;
  for (;;) {
    const leaving = new AbortController();
    const leave = () => leaving.abort();
    const hide = () => document.hidden && leave();
    document.addEventListener("visibilitychange", hide);
    keyChanged.addEventListener("change", leave);
    let status = 0;
    try {
      if (document.hidden) leave();
      const answer = await post(`${MODEL_MGMT}WatchModels`, { after: sequence }, leaving.signal);
      connection("Connected", "good");
      for await (const line of linesOf(answer)) {
        if (!line) continue;
        const change = JSON.parse(line);
        // The stream has ended with an error, which is the last line.
        if (change.code) throw new Problem(change.message);
        wait = FIRST_PAUSE;
        take(change);
        sequence = change.sequence;
      }
    } catch (error) {
      status = error.status ?? 0;
      if (error.name === "AbortError") wait = 0;
      else connection(error.message, "bad");
    } finally {
      document.removeEventListener("visibilitychange", hide);
      keyChanged.removeEventListener("change", leave);
    }
    if (document.hidden) await once(document, "visibilitychange");
    else if (status === 401) await once(keyChanged, "change");
    else await pause(wait);
    wait = Math.min(Math.max(2 * wait, FIRST_PAUSE), LONGEST_PAUSE);
  }
}

const once = (target, name) => new Promise((done) => target.addEventListener(name, done, { once: true }));

function take(change) {
  if (change.complete) models.clear();
  for (const id of change.removed) models.delete(id);
  for (const model of change.models) {
    const before = stateOf(models.get(model.model_id));
    models.set(model.model_id, model);
    if (before && before !== stateOf(model)) news(model);
  }
  showModels();
}

const stateOf = (model) => model?.state.replace("MODEL_STATE_", "");

// Said aloud by screen readers.
function news(model) {
  at("models-news").textContent = `${model.model_id}: ${stateOf(model).toLowerCase()}`;
}

function bytes(count) {
  const mib = Number(count) / 2 ** 20;
  return mib < 1024 ? `${mib.toFixed(mib < 10 ? 1 : 0)} MiB` : `${(mib / 1024).toFixed(2)} GiB`;
}

function showModels() {
  const body = at("models");
  for (const [id, row] of rows) {
    if (!models.has(id)) {
      row.element.remove();
      rows.delete(id);
    }
  }
  [...models.keys()].sort().forEach((id, place) => {
    if (!rows.has(id)) rows.set(id, newRow(id));
    const { element, show } = rows.get(id);
    show(models.get(id));
    // One that is moved loses its focus.
    if (body.children[place] !== element) body.insertBefore(element, body.children[place] ?? null);
  });
  at("no-models").hidden = models.size > 0;
  offer("chat-model", CHAT_TYPES);
  offer("embed-model", EMBEDDING_TYPES);
}

// A row of the table, whose parts stay the same while their texts change.
function newRow(id) {
  const type = made("td"), memory = made("td", { kind: "number" }), calls = made("td", { kind: "number" });
  const word = made("span"), bar = made("progress", { max: 1 }), detail = made("span", { kind: "note" });
  const action = made("button", { type: "button" });
  bar.setAttribute("aria-label", `Progress of ${id}`);
  action.addEventListener("click", () => (action.dataset.does === "load" ? load(id, "") : unload(id)));
  const element = made("tr", {
    children: [
      made("th", { text: id, scope: "row" }), type,
      made("td", { children: [word, " ", detail, bar] }), memory, calls, made("td", { children: [action] }),
    ],
  });

  function show(model) {
    const state = stateOf(model), share = shareOf(model, state);
    type.textContent = model.pipeline_type;
    word.textContent = state.toLowerCase();
    word.className = { READY: "ready", FAILED: "failed" }[state] ?? "";
    detail.textContent = detailOf(model, state);
    bar.hidden = !UNDER_WAY.includes(state);
    if (share === undefined) bar.removeAttribute("value");
    else bar.value = share;
    const held = Number(model.ram_bytes) + Number(model.vram_bytes);
    memory.textContent = held ? bytes(held) : "–";
    memory.title = `${bytes(model.weights_bytes)} of weights, ${bytes(model.cache_bytes)} of cache`;
    calls.textContent = model.calls_in_flight;
    const loads = state === "FAILED" || state === "EVICTED";
    action.dataset.does = loads ? "load" : "unload";
    action.textContent = loads ? "Load" : "Unload";
    action.setAttribute("aria-label", `${action.textContent} ${id}`);
    action.disabled = state === "UNLOADING";
  }

  return { element, show };
}

function shareOf(model, state) {
  if (state === "FETCHING" && Number(model.bytes_total)) return Number(model.bytes_fetched) / Number(model.bytes_total);
  return state === "LOADING" ? model.load_share : undefined;
}

function detailOf(model, state) {
  if (state === "READY") return model.engine;
  if (state === "FETCHING" && Number(model.bytes_total)) return `${bytes(model.bytes_fetched)} of ${bytes(model.bytes_total)}`;
  return model.reason;
}

// The models of some types, those that are ready first; what was chosen stays.
function offer(id, types) {
  const select = at(id), chosen = select.value;
  const found = [...models.values()].filter((model) => types.includes(model.pipeline_type));
  found.sort((a, b) => (stateOf(b) === "READY") - (stateOf(a) === "READY") || (a.model_id < b.model_id ? -1 : 1));
  const options = found.map((model) => {
    const state = stateOf(model);
    return made("option", { value: model.model_id, text: state === "READY" ? model.model_id : `${model.model_id} (${state.toLowerCase()})` });
  });
  if (!options.length) options.push(made("option", { value: "", text: "none: load one first" }));
  const same = options.length === select.options.length
    && options.every((one, place) => one.value === select.options[place].value && one.text === select.options[place].text);
  if (same) return; // a list that is open stays open
  select.replaceChildren(...options);
  if (found.some((model) => model.model_id === chosen)) select.value = chosen;
}

// The chosen model; a Problem if there is none.
function chosen(id, sort) {
  const value = at(id).value;
  if (!value) throw new Problem(`No ${sort} model is in memory: load one first.`);
  return value;
}

async function load(id, type) {
  tell("models-message");
  try {
    const { status } = await ask(`${MODEL_MGMT}LoadModel`, { model_id: id, pipeline_type: type, wait: false });
    // The watch tells the rest; what it has said already is newer.
    if (status?.model_id && !models.has(status.model_id)) {
      models.set(status.model_id, status);
      news(status);
      showModels();
    }
  } catch (error) {
    tell("models-message", error);
  }
}

async function unload(id) {
  tell("models-message");
  try {
    await post(`${MODEL_MGMT}UnloadModel`, { model_id: id });
  } catch (error) {
    tell("models-message", error);
  }
}

at("load-form").addEventListener("submit", (event) => {
  event.preventDefault();
  load(at("model-id").value.trim(), at("model-type").value.trim());
});

// Chat

let conversation = [];
let chatting = null;

function said(kind, text = "") {
  const paragraph = made("p", { kind, text });
  at("chat-log").append(paragraph);
  paragraph.scrollIntoView({ block: "nearest" });
  return paragraph;
}

// The events of a stream; an error among them is a Problem.
async function* eventsOf(answer) {
  for await (const line of linesOf(answer)) {
    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
    const event = JSON.parse(line.slice(6));
    if (event.error) throw new Problem(event.error.message);
    yield event;
  }
}

async function chat(text) {
  const log = at("chat-log");
  tell("chat-message");
  at("chat-facts").textContent = "";
  chatting = new AbortController();
  chatButtons();
  const messages = conversation; // Clear begins another one
  let answer = "", asked, shown;
  try {
    const model = chosen("chat-model", "chat");
    messages.push({ role: "user", content: text });
    asked = said("own", text);
    at("chat-text").value = "";
    log.ariaBusy = "true"; // read aloud once it is complete
    const start = performance.now();
    let first, usage, ended;
    const stream = await post("/v1/chat/completions", {
      model, messages, stream: true, stream_options: { include_usage: true },
      max_tokens: at("chat-tokens").valueAsNumber || 256, temperature: at("chat-temperature").valueAsNumber || 0,
    }, chatting.signal);
    for await (const event of eventsOf(stream)) {
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      ended = choice?.finish_reason ?? ended;
      const piece = choice?.delta.content;
      if (!piece) continue;
      first ??= performance.now();
      answer += piece;
      (shown ??= said("")).append(piece);
      log.scrollTop = log.scrollHeight;
    }
    if (!answer) throw new Problem("The model has ended its answer before the first word.");
    at("chat-facts").textContent = facts(usage, first, start, ended);
  } catch (error) {
    tell("chat-message", error);
  } finally {
    log.ariaBusy = "false";
    chatting = null;
    chatButtons();
    if (answer) messages.push({ role: "assistant", content: answer });
    else if (asked) { // it can be sent again
      messages.pop();
      asked.remove();
      if (messages === conversation) at("chat-text").value ||= text;
    }
  }
}

function facts(usage, first, start, ended) {
  const parts = [];
  if (usage) parts.push(`${usage.completion_tokens} tokens`);
  if (first) {
    parts.push(`first after ${((first - start) / 1000).toFixed(2)} s`);
    const seconds = (performance.now() - first) / 1000;
    if (usage && seconds > 0.01) parts.push(`then ${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
  }
  if (ended === "length") parts.push("cut: it has as many tokens as it may");
  return parts.join(", ");
}

function chatButtons() {
  at("chat-send").disabled = Boolean(chatting);
  at("chat-stop").hidden = !chatting;
}

at("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("chat-text").value.trim();
  if (text && !chatting) chat(text);
});
at("chat-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("chat-form").requestSubmit();
  }
});
at("chat-stop").addEventListener("click", () => chatting?.abort());
at("chat-clear").addEventListener("click", () => {
  chatting?.abort();
  conversation = [];
  at("chat-log").replaceChildren();
  at("chat-facts").textContent = "";
  tell("chat-message");
});

// Embeddings

at("embed-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("embed-message");
  const button = event.submitter;
  button.disabled = true;
  try {
    const texts = at("embed-texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (texts.length > MAX_TEXTS) throw new Problem(`The table takes ${MAX_TEXTS} texts at most.`);
    const start = performance.now();
    const { data } = await ask("/v1/embeddings", { model: chosen("embed-model", "embedding"), input: texts });
    const took = performance.now() - start;
    showSimilarities(texts, data.map((one) => unit(one.embedding)));
    at("embed-facts").textContent = `${texts.length} texts, ${data[0].embedding.length} dimensions, ${took.toFixed(0)} ms`;
  } catch (error) {
    tell("embed-message", error);
  } finally {
    button.disabled = false;
  }
});

function unit(vector) {
  const length = Math.hypot(...vector) || 1;
  return vector.map((value) => value / length);
}

function showSimilarities(texts, vectors) {
  at("similarity-head").replaceChildren(made("tr", {
    children: [made("th", { text: "Text", scope: "col" }), ...texts.map((text, place) => made("th", { text: `${place + 1}`, title: text, scope: "col" }))],
  }));
  at("similarity-rows").replaceChildren(...texts.map((text, row) => made("tr", {
    children: [made("th", { text: `${row + 1}. ${text}`, scope: "row" }), ...vectors.map((other) => {
      const cosine = other.reduce((sum, value, place) => sum + value * vectors[row][place], 0);
      const cell = made("td", { text: cosine.toFixed(2).replace("-0.00", "0.00") });
      cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(35 * Math.max(0, cosine))}%, transparent)`;
      return cell;
    })],
  })));
  at("similarities").hidden = false;
}

// Vision

const GREEN = "#3cdc5a", RED = "#f0463c", YELLOW = "#ffdc3c", WHITE = "#ffffff";
// Lines between points: MediaPipe's HAND_CONNECTIONS and POSE_CONNECTIONS, as chains.
const HAND = [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [0, 17, 18, 19, 20], [5, 9, 13, 17]];
const BODY = [
  [8, 6, 5, 4, 0, 1, 2, 3, 7], [10, 9], [11, 12, 24, 23, 11], [11, 13, 15, 17, 19, 15, 21], [12, 14, 16, 18, 20, 16, 22],
  [23, 25, 27, 29, 31, 27], [24, 26, 28, 30, 32, 28],
];
const SEEN = 0.5; // points that the model considers hidden are not drawn

const TASKS = {
  faces: { rpc: "DetectFaces", list: "faces", one: "face", many: "faces", draw: drawFace },
  // There is no call for the mesh of one picture: it is a stream of one frame.
  mesh: { rpc: "StreamFaceMesh", list: "faces", one: "face", many: "faces", draw: drawMesh, stream: true },
  hands: { rpc: "DetectHands", list: "hands", one: "hand", many: "hands", draw: drawHand },
  pose: { rpc: "DetectPose", list: "poses", one: "pose", many: "poses", draw: drawPose },
};

let picture = null; // the last one, for another task
let camera = null;
let looking = null;

const task = () => TASKS[document.querySelector("input[name=task]:checked").value];

// Puts a picture or a frame onto the hidden canvas from which it is sent.
function taken(source, width, height) {
  const scale = Math.min(1, MAX_EDGE / Math.max(width, height));
  const canvas = made("canvas", { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// Finds what the task looks for in a canvas, and shows both.
async function find(canvas, signal) {
  const asked = task(), start = performance.now();
  const data = canvas.toDataURL("image/jpeg", JPEG_QUALITY).split(",")[1];
  const message = asked.stream ? [{ frame_data: data, format: "jpeg" }] : { image_data: data, format: "jpeg" };
  const answer = await ask(VISION + asked.rpc, message, signal);
  if (answer.skip_message) throw new Problem(answer.skip_message);
  const found = answer[asked.list];
  show(canvas, asked, found);
  const took = performance.now() - start, { inference_ms: computed = 0 } = answer.timing ?? {};
  at("found").textContent = summary(asked, found);
  at("vision-facts").textContent = `${canvas.width} × ${canvas.height}, ${computed.toFixed(0)} ms in the model, ${took.toFixed(0)} ms in all`;
}

function summary(asked, found) {
  const count = found.length === 1 ? `1 ${asked.one}` : `${found.length || "No"} ${asked.many}`;
  const each = found.map((one) => [one.handedness, one.gestures?.[0]?.name.replaceAll("_", " "), `${Math.round(100 * one.confidence)} %`]
    .filter((word) => word && word !== "None").join(" "));
  return found.length ? `${count}: ${each.join(", ")}` : `${count} found`;
}

function show(canvas, asked, found) {
  const shown = at("shown"), drawn = at("drawn");
  for (const one of [shown, drawn]) Object.assign(one, { width: canvas.width, height: canvas.height });
  shown.getContext("2d").drawImage(canvas, 0, 0);
  shown.setAttribute("aria-label", `The picture, with ${summary(asked, found)}`);
  const pen = new Pen(drawn);
  for (const one of found) asked.draw(pen, one);
  at("stage").hidden = false;
}

// Draws in coordinates from 0 to 1.
class Pen {
  constructor(canvas) {
    this.context = canvas.getContext("2d");
    this.width = canvas.width;
    this.height = canvas.height;
    this.unit = Math.max(1, Math.max(this.width, this.height) / 320);
    this.context.lineWidth = this.unit;
    this.context.font = `600 ${7 * this.unit}px system-ui, sans-serif`;
  }

  dots(points, colour, size = 1.5) {
    this.context.fillStyle = colour;
    for (const point of points) {
      this.context.beginPath();
      this.context.arc(point.x * this.width, point.y * this.height, size * this.unit, 0, 7);
      this.context.fill();
    }
  }

  chain(points, colour) {
    this.context.strokeStyle = colour;
    this.context.beginPath();
    points.forEach((point, place) => this.context[place ? "lineTo" : "moveTo"](point.x * this.width, point.y * this.height));
    this.context.stroke();
  }

  box(box, colour) {
    this.context.strokeStyle = colour;
    this.context.strokeRect(box.x * this.width, box.y * this.height, box.width * this.width, box.height * this.height);
  }

  label(text, point) {
    const x = point.x * this.width, y = Math.max(8 * this.unit, point.y * this.height - 2 * this.unit);
    this.context.lineJoin = "round";
    this.context.strokeStyle = "#000000";
    this.context.strokeText(text, x, y);
    this.context.fillStyle = WHITE;
    this.context.fillText(text, x, y);
  }
}

function drawFace(pen, face) {
  pen.box(face, GREEN);
  pen.dots(face.keypoints, RED);
  pen.label(`${Math.round(100 * face.confidence)} %`, face);
}

function drawMesh(pen, face) {
  pen.dots(face.landmarks, GREEN, 0.5);
  for (let place = 0; place + 1 < face.contours.length; place += 2) {
    pen.chain([face.landmarks[face.contours[place]], face.landmarks[face.contours[place + 1]]], YELLOW);
  }
}

function drawHand(pen, hand) {
  for (const chain of HAND) pen.chain(chain.map((place) => hand.landmarks[place]), GREEN);
  pen.dots(hand.landmarks, RED);
  pen.label(summary(TASKS.hands, [hand]).replace("1 hand: ", ""), hand.landmarks[0]);
}

function drawPose(pen, pose) {
  const seen = (place) => pose.landmarks[place].visibility >= SEEN;
  for (const chain of BODY) {
    for (let step = 1; step < chain.length; step++) {
      const ends = [chain[step - 1], chain[step]];
      if (ends.every(seen)) pen.chain(ends.map((place) => pose.landmarks[place]), GREEN);
    }
  }
  pen.dots(pose.landmarks.filter((point) => point.visibility >= SEEN), RED);
}

// One picture: a new one, or the last one with another task.
async function look() {
  looking?.abort();
  looking = new AbortController();
  const { signal } = looking;
  tell("vision-message");
  at("found").textContent = "Looking …";
  try {
    await find(picture, signal);
  } catch (error) {
    if (error.name !== "AbortError") at("found").textContent = "";
    tell("vision-message", error);
  }
}

at("picture").addEventListener("change", async () => {
  const [file] = at("picture").files;
  if (!file) return;
  stopCamera();
  try {
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => {
      throw new Problem(`The browser cannot read ${file.name} as a picture.`);
    });
    picture = taken(bitmap, bitmap.width, bitmap.height);
    bitmap.close();
    await look();
  } catch (error) {
    tell("vision-message", error);
  }
});

for (const input of document.querySelectorAll("input[name=task]")) {
  // A camera's next frame has the new task anyway.
  input.addEventListener("change", () => picture && !camera && look());
}

const REFUSALS = {
  NotAllowedError: "The browser may not use the camera.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is in use elsewhere.",
};

async function startCamera() {
  if (!navigator.mediaDevices) throw new Problem("The browser has no camera here: it needs http://localhost, or TLS.");
  const stream = await navigator.mediaDevices.getUserMedia({ video: CAMERA }).catch((error) => {
    throw new Problem(REFUSALS[error.name] ?? `The camera does not start: ${error.message}`);
  });
  const video = made("video", { srcObject: stream, muted: true, playsInline: true });
  await video.play().catch((error) => {
    for (const track of stream.getTracks()) track.stop();
    throw new Problem(`The camera does not start: ${error.message}`);
  });
  looking?.abort();
  looking = new AbortController();
  camera = { stream, video };
  at("camera").textContent = "Stop webcam";
  watchCamera(looking.signal);
}

// Each frame is sent when the one before is answered, so that none waits.
async function watchCamera(signal) {
  const { video, stream } = camera;
  stream.getVideoTracks()[0].addEventListener("ended", stopCamera);
  try {
    while (!signal.aborted) {
      if (document.hidden) await once(document, "visibilitychange");
      else {
        picture = taken(video, video.videoWidth, video.videoHeight);
        await find(picture, signal);
        await new Promise(requestAnimationFrame);
      }
    }
  } catch (error) {
    tell("vision-message", error);
    if (error.name !== "AbortError") stopCamera();
  }
}

function stopCamera() {
  if (!camera) return;
  looking?.abort();
  for (const track of camera.stream.getTracks()) track.stop();
  camera = null;
  at("camera").textContent = "Start webcam";
}

at("camera").addEventListener("click", async () => {
  tell("vision-message");
  if (camera) {
    stopCamera();
    return;
  }
  at("camera").disabled = true;
  try {
    await startCamera();
  } catch (error) {
    tell("vision-message", error);
  } finally {
    at("camera").disabled = false;
  }
});

watchModels();
