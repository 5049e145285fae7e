import { Fleet } from "../../src/index.js";
import { startBuilt } from "../gateway/processes.js";
import { RawClient } from "../gateway/raw-client.js";
import { withModel } from "../gateway/with-model.js";
import { claim, compare, processorSeconds } from "../measure.js";
import { openStream } from "./raw-stream.js";

/** The number of servers on each side. A server accepts 128 connections at a time (measured with runtime 1.0.85). */
const SERVERS = 2;

export interface StreamingSize {
  /** The number of users, each with one stream at a time on each side. */
  clients: number;
  /** The number of words in each answer. Each word is a delta. */
  words: number;
  rounds: number;
}

/**
 * Compares streams of turns to many clients at the same time, through the front door and over HTTP. Each side has its
 * own servers and model. With shared servers, the turns over HTTP would also pay for the idle clients of the front
 * door, because a server reports each turn to all of its connections.
 */
export async function measureStreaming(limitMs: number, size: StreamingSize): Promise<void> {
  await withModel(limitMs, async (ofDoor, atDoor) => {
    await withModel(limitMs, async (ofHttp, atHttp) => {
      await compareStreams([ofDoor, atDoor], [ofHttp, atHttp], size);
    });
  });
}

/** The environment and the folder of a fleet. */
type Side = readonly [env: NodeJS.ProcessEnv, folder: string];

async function compareStreams(ofDoor: Side, ofHttp: Side, { clients, words, rounds }: StreamingSize): Promise<void> {
  const open = async ([env, cwd]: Side) => {
    const shared = { ...env, COPILOTFLEET_ISOLATION: "shared", COPILOTFLEET_POOL_SERVERS: String(SERVERS) };
    return { env: shared, fleet: await Fleet.open({ env: shared, cwd }) };
  };
  const [front, api] = [await open(ofDoor), await open(ofHttp)];
  await using doorFleet = front.fleet;
  await using httpFleet = api.fleet;
  using door = await startBuilt("door", front.env);
  using http = await startBuilt("http", api.env);
  const prompt = Array.from({ length: words }, (_, index) => `w${index}`).join(" ");
  const users = Array.from({ length: clients }, (_, index) => `user-${index}`);
  const members: { client: RawClient; token: string; through: string; over: string }[] = [];
  for (const user of users) {
    const client = await RawClient.connect(door.url, (await doorFleet.tokens.issue(user)).token);
    const { token } = await httpFleet.tokens.issue(user);
    const [through, over] = [`door-${user}`, `http-${user}`];
    await client.request("session.create", { sessionId: through, streaming: true });
    await post(http.url, token, over);
    members.push({ client, token, through, over });
  }
  const wanted = clients * (words + 2); // an answer consists of "[turn N]" and the words of the prompt
  const throughDoor = async () => {
    const before = members.reduce((sum, { client }) => sum + client.deltas, 0);
    await Promise.all(members.map(async ({ client, through }) => await client.turn(through, prompt)));
    return members.reduce((sum, { client }) => sum + client.deltas, 0) - before;
  };
  const overHttp = async () => {
    const streams = members.map(async ({ token, over }) => {
      const path = `/v1/sessions/${over}/turns`;
      const stream = await openStream(http.url, { method: "POST", path, token, body: { prompt } });
      await stream.closed();
      if (stream.count("turn.end") !== 1) throw new Error(`a stream has no end: ${[...stream.counts.keys()]}`);
      return stream.count("assistant.message_delta");
    });
    return (await Promise.all(streams)).reduce((sum, count) => sum + count, 0);
  };
  const measured = (name: string, pid: number, run: () => Promise<number>) => ({
    name: `${clients} streams, ${name}`,
    round: async () => {
      const [before, start] = [processorSeconds(pid), performance.now()];
      const deltas = await run();
      const ms = performance.now() - start;
      if (deltas !== wanted) throw new Error(`${name}: ${deltas} deltas in place of ${wanted}`);
      const perDelta = ((processorSeconds(pid) - before) * 1e6) / deltas;
      console.log(
        `   ${name}: ${((deltas / ms) * 1000).toFixed(0)} deltas a second, ${perDelta.toFixed(0)} µs of processor time for each`,
      );
      return ms;
    },
  });
  const times = await compare(rounds, [
    measured("through the front door", door.pid, throughDoor),
    measured("over HTTP", http.pid, overHttp),
  ]);
  const [doorMs = Number.NaN, httpMs = Number.NaN] = [...times.values()];
  claim("streaming, time over HTTP to through the front door", httpMs / doorMs, 1 / 0.9);
  for (const { client } of members) client.end();
}

async function post(url: string, token: string, id: string): Promise<void> {
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const response = await fetch(`${url}/v1/sessions`, { method: "POST", headers, body: JSON.stringify({ id }) });
  if (response.status !== 201) throw new Error(await response.text());
}
