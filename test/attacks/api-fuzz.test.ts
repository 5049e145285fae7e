import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, expect, it } from "vitest";
import { faultIn, operationAt } from "../fixtures/api/document.js";
import { parseReply, rawReply } from "../fixtures/api/raw-reply.js";
import { type Made, RequestMaker } from "../fixtures/api/requests.js";
import { seededRandom } from "../fixtures/random.js";
import { TestApi } from "../http/harness.js";

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

const REQUESTS = process.env.SOAK === undefined ? 500 : 10_000;
const AT_ONCE = 8;
const MOST_GROWTH = 64 * 1024 * 1024;

let at: TestApi;
let tokens: { use: string; admin: string };
let maker: RequestMaker;

beforeAll(async () => {
  const open = { connections: null, sessions: 200 };
  at = await TestApi.open({ config: { limits: { default: open } } });
  tokens = { use: await at.token("alice"), admin: await at.token("root", ["admin", "issue"]) };
  const sessions = ["one", "two", "three"];
  for (const id of sessions) await at.ok("POST", "/v1/sessions", { token: tokens.use, body: { id } });
  const { server } = await at.fleet.servers.spawn("carol");
  const ids = {
    sessions: [...sessions, "nothing"],
    servers: [server.id, "nothing"],
    tokens: ["nothing"],
    users: ["nobody"],
  };
  maker = new RequestMaker(seededRandom("requests from the document"), { ids, tokens });
});
afterAll(async () => await at[Symbol.asyncDispose]());

/** Describes what is wrong with the answer to a request; null if the answer is right. */
function faultOf({ method, path }: Made, received: string): string | null {
  const reply = parseReply(received);
  // Node.js closes the connection without an answer if the head of the request never ends.
  if (reply === null)
    return /^(?:HTTP\/1\.1 100 Continue\s+)?$/.test(received) ? null : `these bytes: ${received.slice(0, 200)}`;
  const { status, headers, text } = reply;
  if (status >= 500 && status !== 503) return `the status ${status}`;
  if (/\bat .*\.[cm]?[jt]s:\d+|node:internal|node_modules/.test(text)) return "a stack trace";
  // A stream may contain paths, because the history names the folder in which the agent works.
  const isStream = headers["content-type"] === "text/event-stream";
  if (!isStream && [at.commands.folder, process.cwd()].some((folder) => text.includes(folder))) return "a path";
  if (isStream || status === 400 || status === 408 || status === 431) return null;
  return operationAt(method, path) === null || text === "" ? null : faultIn(method, path, reply);
}

async function fuzz(count: number): Promise<Map<number, number>> {
  const statuses = new Map<number, number>();
  for (let done = 0; done < count; done += AT_ONCE) {
    const batch = Array.from({ length: AT_ONCE }, () => maker.make());
    await Promise.all(
      batch.map(async (made) => {
        const received = await rawReply(at.door.address.port, made.bytes);
        const status = parseReply(received)?.status ?? 0;
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
        const fault = faultOf(made, received);
        expect(fault, `${made.bytes.toString("latin1").slice(0, 2_000)}\n\n${received.slice(0, 2_000)}`).toBeNull();
      }),
    );
  }
  return statuses;
}

it(`the API answers ${REQUESTS} random requests as documented, with no 5xx but 503, and leaks no memory`, async () => {
  await fuzz(REQUESTS / 5);
  collectGarbage();
  const before = process.memoryUsage().heapUsed;
  const statuses = await fuzz((REQUESTS * 4) / 5);
  collectGarbage();
  const growth = process.memoryUsage().heapUsed - before;
  console.log(`statuses: ${JSON.stringify(Object.fromEntries([...statuses].sort()))}; growth: ${growth} bytes`);
  // Make sure that many requests have passed all checks and reached the handlers.
  expect(statuses.get(200)).toBeGreaterThan(REQUESTS / 20);
  expect(statuses.get(422)).toBeGreaterThan(REQUESTS / 50);
  expect(growth).toBeLessThan(MOST_GROWTH);
  expect(at.events.filter(({ event, detail }) => event === "failed" && detail?.includes("request "))).toEqual([]);

  const { id } = (await at.ok("POST", "/v1/sessions", { token: await at.token("dora") })).json.session;
  const token = await at.token("dora");
  const { json } = await at.ok("POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: "still here" } });
  expect(json.reply).toBe("[turn 1] still here");
});
