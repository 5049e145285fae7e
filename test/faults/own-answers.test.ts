import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { approveAll, type CopilotClient, type CopilotSession } from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DoorFleet } from "../door/harness.js";
import { COMMAND } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { rounds } from "../fixtures/fleets/fault-fleet.js";
import { portVariables } from "../fixtures/fleets/ports.js";
import { converse, crossed, idlesOf, messagesOf, type Said, type Speaker } from "../fixtures/sessions/conversations.js";
import { historyFiles, readHistory } from "../fixtures/sessions/session-history.js";
import { unused } from "../fixtures/sessions/unused.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { HostDoors } from "../hosts/door-harness.js";

const CLIENTS = rounds(3, 8);
/**
 * Each prompt sends the whole history to the model, so a large number of prompts is split into several conversations.
 */
const CONVERSATIONS = rounds(1, 10);
const PROMPTS = rounds(3, 20);
const COMMANDS = rounds(2, 50);
/** Pauses between a client's prompts let some prompts arrive just when another client's turn ends. */
const CASES = [
  { streaming: true, pauseMs: 30 },
  { streaming: false, pauseMs: 0 },
].slice(0, rounds(1, 2));

const run = promisify(execFile);

async function open(client: CopilotClient, sessionId: string, streaming: boolean): Promise<CopilotSession> {
  return await client.resumeSession(sessionId, { onPermissionRequest: approveAll, streaming });
}

/** Lets all clients send their prompts at the same time. Resolves with all prompts and replies, in any order. */
async function converseAll(speakers: readonly Speaker[], pauseMs: number): Promise<Said[]> {
  return (await Promise.all(speakers.map(async (each) => await converse(each, PROMPTS, pauseMs)))).flat();
}

/** Expects one history without a fork that contains each prompt once, followed by its own answer. */
function expectOneHistory(folder: string, id: string, said: readonly Said[]): void {
  const [first, ...others] = historyFiles(folder, id);
  if (first === undefined) throw new Error(`session ${id} has no history`);
  const report = readHistory(first, ...others);
  expect(report).toMatchObject({ forks: [], orphans: [], jumps: [], torn: 0, lost: [] });
  expect(report.turns.toSorted(byPrompt)).toEqual(said.toSorted(byPrompt));
}

function byPrompt(a: { prompt: string }, b: { prompt: string }): number {
  return a.prompt < b.prompt ? -1 : 1;
}

describe.each([
  { isolation: "per-user", isTeam: false },
  { isolation: "per-user", isTeam: true },
  { isolation: "shared", isTeam: false },
  { isolation: "shared", isTeam: true },
] as const)(
  `${CLIENTS} clients in one session on $isolation servers (of several users: $isTeam)`,
  ({ isolation, isTeam }) => {
    let at: DoorFleet;
    beforeAll(async () => {
      at = await DoorFleet.open({ config: { isolation, serve: { turnWait: "10m" } } });
    });
    afterAll(async () => {
      await at[Symbol.asyncDispose]();
    });

    const members = (count: number) => (isTeam ? Array.from({ length: count }, (_, index) => `user${index + 1}`) : []);

    it.each(CASES)(
      `each client of one session gets the answers to its own prompts and all messages (streaming $streaming, pauses of $pauseMs ms)`,
      async ({ streaming, pauseMs }) => {
        const users = ["user0", ...members(CLIENTS - 1)];
        const clients = await Promise.all(
          Array.from({ length: CLIENTS }, async (_, index) => await at.client(users[index] ?? "user0")),
        );
        const listening = await at.client("user0");
        for (let conversation = 0; conversation < CONVERSATIONS; conversation++) {
          const sessionId = unused("own");
          await at.fleet.sessions.leave(
            await at.fleet.sessions.create({ user: "user0", members: users.slice(1), sessionId }),
          );
          const sessions = await Promise.all(clients.map(async (client) => await open(client, sessionId, streaming)));
          const listener = await open(listening, sessionId, streaming);
          const idles = idlesOf(listener);
          const received = [...sessions, listener].map(messagesOf);
          const said = await converseAll(
            sessions.map((session, index) => ({ name: `client${index}`, session })),
            pauseMs,
          );
          expect(crossed(said)).toEqual([]);
          const replies = said.map(({ reply }) => reply).toSorted();
          await eventually("all messages at all clients", () => received.every(({ length }) => length >= said.length));
          for (const messages of received) expect(messages.toSorted()).toEqual(replies);
          await eventually("every end at the listener", () => idles.count >= said.length);
          expect(idles.count).toBe(said.length);
          expectOneHistory(join(at.folder, "state"), sessionId, said);
          await Promise.all([...sessions, listener].map(async (session) => await session.disconnect()));
        }
        await Promise.all([...clients, listening].map(async (client) => await client.stop()));
      },
    );
  },
);

it("clients at the front door, the library and the command each get their own answers in one session", async () => {
  await using at = await DoorFleet.open({ config: { serve: { turnWait: "10m" } } });
  const sessionId = "mixed";
  await at.fleet.sessions.leave(await at.fleet.sessions.create({ user: "ann", members: ["ben"], sessionId }));
  const provider = { COPILOTFLEET_PROVIDER_TYPE: "openai", COPILOTFLEET_PROVIDER_BASE_URL: at.model.baseUrl };
  const env = {
    ...at.env,
    ...portVariables(at.ports),
    ...provider,
    COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
  };
  const byCommand = async (): Promise<Said[]> => {
    const said: Said[] = [];
    for (let index = 0; index < COMMANDS; index++) {
      const prompt = `command-${index}`;
      const args = [COMMAND, "send", sessionId, prompt, "--user", "ben", "--wait", "10m", "--json"];
      const { stdout } = await run(process.execPath, args, { env, cwd: at.folder });
      said.push({ prompt, reply: (JSON.parse(stdout) as { reply: string }).reply });
    }
    return said;
  };
  const byLibrary = async (): Promise<Said[]> => {
    const said: Said[] = [];
    for (let index = 0; index < PROMPTS; index++) {
      const prompt = `library-${index}`;
      const reply = await at.fleet.sessions.use(sessionId, prompt, { user: "ann", wait: 600_000 });
      said.push({ prompt, reply: reply.text });
    }
    return said;
  };
  const speakers = [
    { name: "ann", session: await open(await at.client("ann"), sessionId, true) },
    { name: "ben", session: await open(await at.client("ben"), sessionId, false) },
  ];
  const said = (await Promise.all([converseAll(speakers, 30), byCommand(), byLibrary()])).flat();
  expect(crossed(said)).toEqual([]);
  expectOneHistory(join(at.folder, "state"), sessionId, said);
});

describe.skipIf(redisProblem())("at the front doors of two hosts", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it("clients of one session at the front doors of two hosts get their own answers", async () => {
    const env = { COPILOTFLEET_SERVE_TURN_WAIT: "10m" };
    await using doors = await HostDoors.open({ redis, storage: "local", env });
    await doors.place("ann", "h2");
    const first = await doors.client("ann", "h1");
    const { sessionId } = await first.createSession({ onPermissionRequest: approveAll, sessionId: "hosts" });
    const clients = [first, await doors.client("ann", "h1"), await doors.client("ann", "h2")];
    const sessions = await Promise.all(clients.map(async (client) => await open(client, sessionId, true)));
    const received = sessions.map(messagesOf);
    const speakers = sessions.map((session, index) => ({ name: `client${index}`, session }));
    const said = await converseAll(speakers, 30);
    expect(crossed(said)).toEqual([]);
    await eventually("all messages at all clients", () => received.every(({ length }) => length >= said.length));
    expectOneHistory(doors.hosts.host("h2").root, sessionId, said);
  });
});
