// Classifies noisy copies of an image with both networks, batch by batch, always for the newest request alone.
import * as ort from "../vendor/onnxruntime/ort.wasm.min.mjs";
import { normals } from "./noise.mjs";

const BATCH = 50;
ort.env.wasm.wasmPaths = new URL("../vendor/onnxruntime/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send

let sessions, side, latest, running;

const digest = async (content) => Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", content)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const load = async ({ networks, width }) => {
  side = width;
  const loaded = await Promise.all(
    networks.map(async ({ name, file, sha256 }) => {
      const response = await fetch(new URL(file, import.meta.url));
      if (!response.ok) throw new Error(`${file}: ${response.status} ${response.statusText}`);
      const content = await response.arrayBuffer();
      if (crypto.subtle && (await digest(content)) !== sha256) throw new Error(`${file} is not the network that lab.json describes`);
      return [name, await ort.InferenceSession.create(new Uint8Array(content))];
    }),
  );
  sessions = new Map(loaded);
  postMessage({ type: "ready", checked: Boolean(crypto.subtle) }); // browsers hash only for https and localhost
};

const classify = async (session, pixels, count) => {
  const input = new ort.Tensor("float32", pixels, [count, 1, side, side]);
  const output = (await session.run({ [session.inputNames[0]]: input }))[session.outputNames[0]];
  const classes = output.dims[1];
  return Array.from({ length: count }, (_, row) => {
    const logits = output.data.subarray(row * classes, (row + 1) * classes);
    return logits.indexOf(Math.max(...logits));
  });
};

const noisy = ({ pixels, sigma, seed }, from, to) => {
  const copies = normals(seed, from * pixels.length, to * pixels.length);
  for (let i = 0; i < copies.length; i++) copies[i] = pixels[i % pixels.length] + sigma * copies[i];
  return copies;
};

const newMessages = () => new Promise((resolve) => setTimeout(resolve)); // they arrive only between two tasks

const measure = async (request) => {
  const labels = {};
  for (const [name, session] of sessions) [labels[name]] = await classify(session, request.pixels, 1);
  const counts = Object.fromEntries([...sessions.keys()].map((name) => [name, new Array(request.classes).fill(0)]));
  for (let from = 0; from < request.n; from += BATCH) {
    const to = Math.min(request.n, from + BATCH);
    const copies = noisy(request, from, to);
    for (const [name, session] of sessions) {
      for (const label of await classify(session, copies, to - from)) counts[name][label]++;
    }
    await newMessages();
    if (latest !== request) return;
    const example = from === 0 ? copies.slice(0, request.pixels.length) : undefined;
    postMessage({ type: "counts", id: request.id, counts, labels, samples: to, example });
  }
};

const work = async () => {
  running = true;
  for (let done; done !== latest; ) {
    done = latest;
    await measure(done);
  }
  running = false;
};

const orFail = (promise) => promise.catch((error) => postMessage({ type: "failed", message: error.message }));

onmessage = ({ data }) => {
  if (data.type === "load") orFail(load(data));
  else {
    latest = data;
    if (!running) orFail(work());
  }
};
