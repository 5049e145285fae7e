import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Fleet } from "../../src/index.js";
import { provenEndpoint } from "../../src/runtime/process/probe.js";
import { openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { portVariables, testPorts } from "../fixtures/fleets/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const run = promisify(execFile);
const MEMBER = bundleFixture("member");
const COUNT = process.env.SOAK === undefined ? 8 : 100;

let folder: string;
let env: NodeJS.ProcessEnv;
let fleet: Fleet;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "copilotfleet-team-"));
  env = {
    ...process.env,
    COPILOTFLEET_HOME: join(folder, "state"),
    COPILOTFLEET_ISOLATION: "shared",
    COPILOTFLEET_POOL_SERVERS: "2",
    // Round-robin picks a server for each turn, so the session moves between two servers that share one state folder.
    COPILOTFLEET_POOL_STRATEGY: "round-robin",
    COPILOTFLEET_PROVIDER_TYPE: "echo",
    ...portVariables(testPorts()),
    COPILOT_OFFLINE: "true",
  };
  fleet = await Fleet.open({ cwd: folder, env });
});

afterAll(async () => {
  await fleet.servers.stop(
    (await fleet.servers.list()).map(({ id }) => id),
    { force: true },
  );
  await fleet.close();
  await removeFolder(folder);
});

interface Exchange {
  prompt: string;
  reply: string;
}

async function member(name: string, session: string, extra: NodeJS.ProcessEnv = {}): Promise<Exchange[]> {
  const options = { env: { ...env, MEMBER: name, SESSION: session, COUNT: String(COUNT), ...extra } };
  const { stdout } = await run(process.execPath, [MEMBER], options);
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Exchange);
}

interface Event {
  id: string;
  parentId: string | null;
  type: string;
  data: { content?: string };
}

async function history(session: string): Promise<Event[]> {
  const path = join(folder, "state", "servers", "shared", "session-state", session, "events.jsonl");
  return (await readFile(path, "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Event);
}

/** Counts the forks of a history: events whose parent already has a child, so that they start another branch. */
function forks(events: Event[]): number {
  const parents = events.map(({ parentId }) => parentId).filter((id) => id !== null);
  return parents.length - new Set(parents).size;
}

function misdirected(exchanges: Exchange[]): Exchange[] {
  return exchanges.filter(({ prompt, reply }) => reply.replace(/^\[turn \d+\] /, "") !== prompt);
}

/** Creates a session of alice with the member bob, and runs its first turn. Resolves with the session's id. */
async function sharedSession(): Promise<string> {
  const session = await fleet.sessions.create({ user: "alice", members: ["bob"] });
  await fleet.sessions.send(session, "first");
  await fleet.sessions.leave(session);
  return session.sessionId;
}

describe("a session whose members work in separate processes on two servers that share its state", () => {
  it("two members of one session on two servers get their own answers in one history without a fork", async () => {
    const id = await sharedSession();
    const exchanges = (await Promise.all([member("alice", id), member("bob", id)])).flat();
    expect(exchanges).toHaveLength(2 * COUNT);
    expect(misdirected(exchanges)).toEqual([]);
    const events = await history(id);
    expect(forks(events)).toBe(0);
    const prompts = events.filter(({ type }) => type === "user.message").map(({ data }) => data.content);
    expect(prompts.toSorted()).toEqual(["first", ...exchanges.map(({ prompt }) => prompt)].toSorted());
    // The turn numbers show that the model received the complete history in each turn.
    const turns = exchanges.map(({ reply }) => Number(/\d+/.exec(reply)?.[0]));
    expect(turns.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 2 * COUNT }, (_, index) => index + 2));
  });

  it("without the lease, two members who send prompts at the same time damage their session's history", async () => {
    const id = await sharedSession();
    const { servers } = await openStore("file", join(folder, "state")).registry.read();
    const [one, two] = Object.values(servers).filter(({ process: running }) => running !== null);
    if (one === undefined || two === undefined) throw new Error("two servers should run");
    // The members wait for each other in this folder, so both servers load the session before either gets a prompt.
    const meet = join(folder, `meet-${id}`);
    await mkdir(meet);
    const direct = (server: typeof one) => {
      const { address, port, token } = provenEndpoint(server);
      return { SERVER_URL: `${address}:${port}`, SERVER_TOKEN: token, MEET: meet };
    };
    const outcomes = await Promise.allSettled([member("alice", id, direct(one)), member("bob", id, direct(two))]);
    const exchanges = outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? outcome.value : []));
    const turns = exchanges.map(({ reply }) => reply.split("]")[0]);
    const damage = forks(await history(id)) + misdirected(exchanges).length + turns.length - new Set(turns).size;
    expect(damage).toBeGreaterThan(0);
  });
});
