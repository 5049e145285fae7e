import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { AgentRequest } from "../../src/sessions/requests.js";
import { eventually } from "../fixtures/eventually.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { ask, eventsIn, openStream } from "../http/harness.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`requests of the agent at several hosts are not tested: ${problem}`);

const SHELL = '!tool bash {"command": "echo made", "description": "make"}';
const HOSTS = ["h1", "h2"] as const;
type Name = (typeof HOSTS)[number];

describe.skipIf(problem !== undefined)("the requests of the agent at two hosts", () => {
  let redis: RedisServer;
  let hosts: TestHosts;
  let token: string;
  /** A new user for each attempt of a test. The user's server is on `h2`. */
  let user: string;
  let tries = 0;
  const api: Record<Name, string> = { h1: "", h2: "" };

  async function serve(): Promise<void> {
    await hosts.serve();
    for (const name of HOSTS) {
      const addresses = [...hosts.host(name).output.matchAll(/"http":"([^"]+)"/g)];
      api[name] = addresses.at(-1)?.[1] ?? "";
    }
  }

  beforeAll(async () => {
    redis = await RedisServer.start();
    const env = {
      COPILOTFLEET_PROVIDER_TYPE: "echo",
      COPILOTFLEET_SESSION_APPROVE: "ask",
      COPILOTFLEET_SERVE_HTTP: "127.0.0.1:0",
    };
    hosts = new TestHosts({ redis, names: [...HOSTS], storage: "local", env });
  });
  beforeEach(async () => {
    await serve();
    user = `alice-${++tries}`;
    await hosts.place(user, "h2");
    const ran = await hosts.host("h1").run(["token", "issue", "--user", user, "--json"]);
    token = (JSON.parse(ran.stdout) as { token: string }).token;
    await call("h1", "POST", "/v1/sessions", { id: user });
  });
  afterAll(async () => {
    await hosts[Symbol.asyncDispose]();
    await redis.end();
  });

  const call = async (host: Name, method: string, path: string, body?: object) =>
    await ask(api[host], method, path, { token, ...(body === undefined ? {} : { body }) });
  const turn = async (host: Name, prompt: string) => await call(host, "POST", `/v1/sessions/${user}/turns`, { prompt });

  async function asked(host: Name): Promise<AgentRequest> {
    return await eventually("a request", async () => {
      const { json } = await call(host, "GET", `/v1/sessions/${user}/requests`);
      return (json.requests as AgentRequest[])[0];
    });
  }

  it.each([
    ["h1", "h2"],
    ["h2", "h1"],
  ] as const)("an agent's request in a turn at %s can be listed, followed and answered at %s", async (here, there) => {
    await turn(here, "hello");
    const stop = new AbortController();
    const path = `/v1/sessions/${user}/events`;
    const follower = openStream(api[there], path, { token, signal: stop.signal });
    await eventually("the follower", () => follower.text.includes("assistant.message"));
    const running = turn(here, SHELL);
    const request = await asked(there);
    expect(request).toMatchObject({ session: user, permission: { fullCommandText: "echo made" } });
    const nonsense = await call(there, "POST", `/v1/sessions/${user}/requests/${request.id}`, { answer: "yes" });
    expect(nonsense).toMatchObject({ status: 422, json: { code: "FLEET_USAGE_INVALID" } });
    const answer = { decision: "approve" };
    const answered = await call(there, "POST", `/v1/sessions/${user}/requests/${request.id}`, answer);
    expect(answered).toMatchObject({ status: 200, json: { outcome: "approved" } });
    expect((await running).json.reply).toContain("made");
    const again = await call(there, "POST", `/v1/sessions/${user}/requests/${request.id}`, answer);
    expect(again).toMatchObject({ status: 409, json: { code: "FLEET_REQUEST_CLOSED" } });
    await eventually("both changes", () => {
      const changes = eventsIn(follower.text).filter(({ event }) => event.startsWith("request."));
      return changes.map(({ event }) => event).join() === "request.opened,request.closed";
    });
    stop.abort();
  });

  it("an agent request ends when the serve that runs its turn is killed, and the session accepts the next turn", async () => {
    const running = turn("h1", SHELL).catch(() => null);
    await asked("h2");
    await hosts.host("h1").stopServing("SIGKILL");
    await running;
    await eventually("the end of the request", async () => {
      const { json } = await call("h2", "GET", `/v1/sessions/${user}/requests`);
      return json.requests.length === 0;
    });
    expect((await turn("h2", "and now")).json.reply).toContain("and now");
  });

  it("an agent request ends when the session's server dies, and the tool that it asked for never runs", async () => {
    const running = turn("h1", SHELL);
    const request = await asked("h2");
    const servers = await hosts.host("h2").run(["ps", "--user", user, "--json"]);
    const {
      servers: [server],
    } = JSON.parse(servers.stdout) as { servers: [{ pid: number }] };
    process.kill(server.pid, "SIGKILL");
    const { status, json } = await running;
    expect([200, 502, 503]).toContain(status);
    // The next server may run the prompt again. It then asks for permission again, so the tool still does not run.
    if (status === 200) expect(json.reply).not.toContain("made");
    const late = await call("h2", "POST", `/v1/sessions/${user}/requests/${request.id}`, { decision: "approve" });
    expect(late.status).toBe(409);
    expect((await turn("h2", "and now")).json.reply).toContain("and now");
  });
});
