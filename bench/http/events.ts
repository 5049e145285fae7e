import { setTimeout as delay } from "node:timers/promises";
import { Fleet } from "../../src/index.js";
import { type PartProcess, startBuilt } from "../gateway/processes.js";
import { claim, median } from "../measure.js";
import { openStream } from "./raw-stream.js";

const ROUNDS = 30;

/** Measures how long after the end of a turn a follower of the session receives the turn's last message. */
export async function measureEvents(env: NodeJS.ProcessEnv, folder: string, _model: PartProcess): Promise<void> {
  await using fleet = await Fleet.open({ env, cwd: folder });
  const session = await fleet.sessions.create({ user: "follower", sessionId: "followed" });
  await fleet.sessions.send(session, "hello");
  const { token } = await fleet.tokens.issue("follower");
  using http = await startBuilt("http", env);
  let atMs = 0;
  let messages = 0;
  const onEvent = (name: string) => {
    if (name !== "assistant.message") return;
    messages++;
    atMs = performance.now();
  };
  const stream = await openStream(http.url, { path: "/v1/sessions/followed/events", token, onEvent });
  while (messages === 0) await delay(5);
  const late: number[] = [];
  for (let round = 1; round <= ROUNDS; round++) {
    await fleet.sessions.send(session, "hello");
    const endMs = performance.now();
    while (messages <= round) await delay(1);
    late.push(atMs - endMs);
  }
  stream.socket.destroy();
  console.log(`   from ${Math.min(...late).toFixed(1)} to ${Math.max(...late).toFixed(1)} ms, n ${ROUNDS}`);
  claim("a follower has the message after the end of the turn, in ms (median)", median(late), 50);
}
