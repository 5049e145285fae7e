import { setTimeout as delay } from "node:timers/promises";
import { expect, it } from "vitest";
import type { Fleet } from "../../src/index.js";
import { eventually } from "../fixtures/eventually.js";
import { rounds } from "../fixtures/fleets/fault-fleet.js";
import { type TestHost, TestHosts } from "../fixtures/hosts/hosts.js";
import { StreamClient } from "../fixtures/hosts/stream-client.js";
import { type HeldModel, startHeldModel } from "../fixtures/models/held-model.js";
import { seededRandom } from "../fixtures/random.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { ask } from "../http/harness.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`streams of several hosts are not tested: ${problem}`);

const NAMES = ["h1", "h2"];
/** How many streams are open at the same time. */
const CLIENTS = rounds(6, 1_000);
const CUTS = rounds(40, 5_000);
/** How many sessions each user has. Each host has one user. */
const SESSIONS = rounds(1, 4);
/** How often each host's `serve` is killed, in most cases together with one of the host's servers. */
const KILLS = rounds(1, 8);
const LONGEST_MS = rounds(800, 20_000);
const TURN_MS = 60_000;
/** The maximum number of times that a prompt is sent under its idempotency key. The tries are 500 ms apart. */
const MOST_TRIES = 120;

/** The HTTP API address that the host's latest `serve` logged, even if that `serve` was killed since. */
const urlOf = (host: TestHost) => [...host.output.matchAll(/"http":"([^"]+)"/g)].at(-1)?.[1];

interface Prompt {
  session: string;
  text: string;
  /** "answered", or the code of the error. Null if no host has answered. */
  end: string | null;
}

/** Codes that ask the client to send the request again. */
const AGAIN = new Set([
  "FLEET_POOL_DRAINING",
  "FLEET_HOST_AWAY",
  "FLEET_POOL_DRAINING",
  "FLEET_SESSION_BUSY",
  "FLEET_SESSION_LOCKED",
]);

/**
 * Sends prompts to a session until the test is over. Repeats a prompt under its idempotency key, each time at the next
 * host, until a host answers it or `MOST_TRIES` is reached.
 */
async function sendPrompts(session: string, token: string, hosts: readonly TestHost[], isOver: () => boolean) {
  const prompts: Prompt[] = [];
  for (let number = 0; !isOver(); number++) {
    const prompt: Prompt = { session, text: `<${session}-${number}>`, end: null };
    prompts.push(prompt);
    const body = { prompt: prompt.text, timeout: `${TURN_MS}ms` };
    const headers = { "Idempotency-Key": prompt.text };
    for (let tries = 0; prompt.end === null && tries < MOST_TRIES; tries++) {
      const url = urlOf(hosts[(number + tries) % hosts.length] as TestHost) ?? "";
      const sent = ask(url, "POST", `/v1/sessions/${session}/turns`, { token, body, headers });
      const reply = await sent.catch(() => null);
      if (reply?.status === 200) prompt.end = "answered";
      else if (reply !== null && !AGAIN.has(reply.json?.code)) prompt.end = String(reply.json?.code);
      await delay(prompt.end === "answered" ? 100 : 500);
    }
  }
  return prompts;
}

/**
 * Lists the prompts with a wrong count. Each prompt may be recorded at most once, and may reach the model at most once.
 * An answered prompt must be recorded once, and must reach the model once.
 */
async function checkTurns(fleet: Fleet, user: string, prompts: readonly Prompt[], model: HeldModel): Promise<string[]> {
  const [{ session = "" } = {}] = prompts;
  const recorded: string[] = [];
  for await (const event of fleet.sessions.followEvents(session, { user })) {
    if (event.type === "user.message") recorded.push(event.data.content);
  }
  return prompts.flatMap(({ text, end }) => {
    const isAnswered = end === "answered";
    const count = { recorded: recorded.filter((each) => each.includes(text)).length, asked: model.asked(text) };
    const isOnce = isAnswered ? count.recorded === 1 && count.asked === 1 : count.recorded <= 1 && count.asked <= 1;
    return isOnce ? [] : [`${text} (${end}): ${JSON.stringify(count)}`];
  });
}

it.skipIf(problem !== undefined)(
  "streams that are cut at random and resume at another host get each event once, while serve and servers are killed",
  async () => {
    const random = seededRandom("streams");
    await using model = await startHeldModel();
    const redis = await RedisServer.start();
    const env = {
      ...model.env,
      COPILOTFLEET_SERVE_HTTP: "127.0.0.1:0",
      COPILOTFLEET_LIMITS_DEFAULT_CONNECTIONS: "null",
      COPILOTFLEET_LIMITS_TOTAL_CONNECTIONS: "null",
    };
    try {
      await using hosts = new TestHosts({ redis, names: NAMES, storage: "shared", env });
      const all = NAMES.map((name) => hosts.host(name));
      await hosts.serve();
      await using fleet = await (all[0] as TestHost).library();
      let isOver = false;
      let beginCutting = (): void => undefined;
      const cutting = new Promise<void>((resolve) => (beginCutting = resolve));
      const clients: StreamClient[] = [];
      const talks: { user: string; session: string; prompts: Promise<Prompt[]> }[] = [];
      for (const [at, name] of NAMES.entries()) {
        const user = `user-${name}`;
        await hosts.place(user, name);
        const { token } = await fleet.tokens.issue(user);
        for (let number = 0; number < SESSIONS; number++) {
          const session = `talk-${name}-${number}`;
          const made = await ask(urlOf(all[at] as TestHost) ?? "", "POST", "/v1/sessions", {
            token,
            body: { id: session },
          });
          expect(made.status, made.text).toBe(201);
          talks.push({ user, session, prompts: sendPrompts(session, token, all, () => isOver) });
          const count = CLIENTS / NAMES.length / SESSIONS;
          for (let client = 0; client < count; client++) {
            const options = { sessionId: session, token, hosts: all.length, random, longestMs: LONGEST_MS, cutting };
            clients.push(new StreamClient({ ...options, urlOf: (host) => urlOf(all[host] as TestHost) }));
          }
        }
      }
      const open = () => clients.filter(({ isOpen }) => isOpen).length;
      await eventually(`${CLIENTS} streams at once`, () => open() === clients.length, TURN_MS * 5);
      beginCutting();
      const cuts = () => clients.reduce((sum, client) => sum + client.cuts, 0);
      let servers = 0;
      for (let kill = 0; kill < KILLS; kill++) {
        await delay(random() * 3_000);
        for (const host of all) {
          const pids = host.servers();
          const pid = pids[Math.floor(random() * pids.length)];
          if (pid !== undefined && random() < 0.7) servers += process.kill(pid, "SIGKILL") ? 1 : 0;
          await delay(random() * 1_500);
          await host.stopServing("SIGKILL");
          await host.serve(hosts.store);
        }
      }
      await eventually(`${CUTS} cuts`, () => cuts() >= CUTS, TURN_MS * 10);
      isOver = true;
      const prompts = (await Promise.all(talks.map(async (talk) => await talk.prompts))).flat();
      const problems: string[] = [];
      for (const { user, session } of talks) {
        const ids: string[] = [];
        for await (const { id } of fleet.sessions.followEvents(session, { user })) ids.push(id);
        for (const client of clients.filter(({ sessionId }) => sessionId === session)) {
          await eventually(
            "all events",
            () => client.ids.length >= ids.length && client.ids.at(-1) === ids.at(-1),
            120_000,
          );
          if (JSON.stringify(client.ids) !== JSON.stringify(ids)) {
            const missing = ids.filter((id) => !client.ids.includes(id)).length;
            const twice = client.ids.length - new Set(client.ids).size;
            problems.push(`${session}: ${missing} missing, ${twice} twice, ${client.ids.length} of ${ids.length}`);
          }
          problems.push(...client.faults);
        }
        problems.push(
          ...(await checkTurns(
            fleet,
            user,
            prompts.filter((each) => each.session === session),
            model,
          )),
        );
      }
      const cut = cuts();
      await Promise.all(clients.map(async (client) => await client.end()));
      const events = clients.reduce((sum, { ids }) => sum + ids.length, 0);
      const ends: Record<string, number> = {};
      for (const { end } of prompts) ends[end ?? "no answer"] = (ends[end ?? "no answer"] ?? 0) + 1;
      console.log(
        `${CLIENTS} clients, ${cut} streams cut, ${KILLS * NAMES.length} times serve and ${servers} servers killed, ` +
          `${prompts.length} prompts ${JSON.stringify(ends)}, ${events} events delivered`,
      );
      expect(problems).toEqual([]);
      expect(ends.answered).toBeGreaterThan(0);
    } finally {
      await redis.end();
    }
  },
  rounds(240_000, 30 * 60_000),
);
