import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { issueToken } from "../../src/identity/tokens.js";
import { RawClient } from "../door/raw-client.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { startScriptedModel } from "../fixtures/models/scripted-model.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { CertificateFiles, TestAuthority } from "../fixtures/tls/authority.js";
import { RecordingRelay } from "../fixtures/tls/recording-relay.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`TLS between hosts is not tested: ${problem}`);

/** Disposes of everything that a test has opened, in reverse order. Node.js 20 has no `AsyncDisposableStack`. */
class Stack implements AsyncDisposable {
  readonly #ends: (() => Promise<void>)[] = [];

  use<T extends AsyncDisposable>(opened: T): T {
    this.defer(async () => await opened[Symbol.asyncDispose]());
    return opened;
  }

  defer(end: () => Promise<void>): void {
    this.#ends.unshift(end);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const end of this.#ends) await end();
  }
}

const NAMES = ["h1", "h2"] as const;
const PROMPT = "canary-prompt-71c4";

describe.skipIf(problem !== undefined)("between two hosts of a fleet,", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  // The case without TLS shows that the test would find the secrets.
  it.each([true, false])("tokens and prompts are readable on the wire only without TLS (TLS: %s)", async (hasTls) => {
    await using stack = new Stack();
    const folder = await mkdtemp(join(tmpdir(), "copilotfleet-tls-"));
    stack.defer(async () => await rm(folder, { recursive: true }));
    const authority = new TestAuthority();
    const ca = join(folder, "ca.crt");
    await writeFile(ca, authority.cert);
    const model = stack.use(await startScriptedModel());
    const { from } = testPorts();
    const hosts = new TestHosts({
      redis,
      names: NAMES,
      storage: "local",
      env: {
        COPILOTFLEET_PROVIDER_TYPE: "openai",
        COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
        COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
        MODEL_KEY: "canary-model-key",
      },
    });
    const relays: RecordingRelay[] = [];
    const doorRelays: RecordingRelay[] = [];
    const doors = new Map<string, string>();
    const record = async (port: number) => {
      const relay = stack.use(await RecordingRelay.start(port));
      relays.push(relay);
      return relay;
    };
    for (const [index, name] of NAMES.entries()) {
      const { env } = hosts.host(name);
      const port = from + index;
      const { cert, key } = new CertificateFiles(folder, authority.issue(), name);
      const doorRelay = await record(port);
      doorRelays.push(doorRelay);
      const door = `127.0.0.1:${doorRelay.port}`;
      doors.set(name, door);
      const store = new URL(env.COPILOTFLEET_STORE ?? "");
      store.port = String((await record(Number(store.port))).port);
      Object.assign(env, {
        COPILOTFLEET_STORE: store.href,
        COPILOTFLEET_SERVE_LISTEN: `127.0.0.1:${port}`,
        COPILOTFLEET_HOST_ADVERTISE: door,
        COPILOTFLEET_PORTS_FROM: String(from + 10 + 10 * index),
        COPILOTFLEET_PORTS_TO: String(from + 19 + 10 * index),
      });
      if (!hasTls) continue;
      const tls = { SERVE_TLS_CERT: cert, SERVE_TLS_KEY: key, SERVE_TLS_CLIENT_CA: ca };
      const own = { HOST_TLS_CERT: cert, HOST_TLS_KEY: key, HOST_TLS_CA: ca };
      for (const [variable, value] of Object.entries({ ...tls, ...own })) env[`COPILOTFLEET_${variable}`] = value;
    }
    stack.use(hosts);
    await hosts.serve();
    expect((await hosts.store.hosts.list()).map(({ door }) => door?.startsWith("tls://"))).toEqual([hasTls, hasTls]);

    // Check a client at h1 whose session is on h2, and a command on h1 for that session.
    await hosts.place("alice", "h2");
    const { token } = await issueToken(hosts.store, "alice", null);
    const h1 = doors.get("h1") ?? "";
    const client = hasTls
      ? await RawClient.openTls(h1, { ca: authority.cert, ...authority.issue() })
      : await RawClient.open(h1);
    await client.signedOn(token);
    await client.requestOk("session.create", { sessionId: "s" });
    await client.turnOk("s", PROMPT);
    expect(JSON.stringify(client.received)).toContain(`you said: ${PROMPT}`);
    expect((await hosts.store.sessions.read("s"))?.host).toBe("h2");
    const sent = await hosts.host("h1").run(["send", "s", `${PROMPT} again`, "--user", "alice"]);
    expect(sent).toMatchObject({ code: 0, stdout: expect.stringContaining(`you said: ${PROMPT} again`) });
    expect((await hosts.host("h1").run(["ps"])).stdout).toMatch(/alice-\w+ .*h2/);

    const textOf = (some: readonly RecordingRelay[]) =>
      Buffer.concat(some.map((each) => each.recorded)).toString("latin1");
    const recorded = textOf(relays);
    expect(recorded.length).toBeGreaterThan(10_000);
    // Redis keeps the session's title, which is the beginning of the first prompt.
    expect(textOf(doorRelays).includes(PROMPT)).toBe(!hasTls);
    const canaries = { token, host: '"fleet.call"', connect: '"connect"' };
    for (const [what, canary] of Object.entries(canaries)) expect(recorded.includes(canary), what).toBe(!hasTls);
    // The token of another host consists of `cft_`, an id and a secret. Redis receives only the secret's hash.
    expect(/cft_[0-9a-z]{16}_/.test(recorded)).toBe(!hasTls);
    expect(recorded).not.toContain("canary-model-key");
  });

  it("a host with host.tls sends nothing to a host without TLS, a trusted certificate or its name in the certificate", async () => {
    await using stack = new Stack();
    const folder = await mkdtemp(join(tmpdir(), "copilotfleet-tls-"));
    stack.defer(async () => await rm(folder, { recursive: true }));
    const ca = join(folder, "ca.crt");
    const authority = new TestAuthority();
    await writeFile(ca, authority.cert);
    const foreign = new CertificateFiles(folder, new TestAuthority("another").issue(), "foreign");
    const misnamed = new CertificateFiles(folder, authority.issue({ names: ["h2.example"] }), "misnamed");
    const hosts = new TestHosts({
      redis,
      names: ["h1", "h2", "h3", "h4"],
      storage: "local",
      env: { COPILOTFLEET_PROVIDER_TYPE: "echo" },
    });
    hosts.host("h1").env.COPILOTFLEET_HOST_TLS_CA = ca;
    for (const [name, { cert, key }] of [
      ["h3", foreign],
      ["h4", misnamed],
    ] as const)
      Object.assign(hosts.host(name).env, { COPILOTFLEET_SERVE_TLS_CERT: cert, COPILOTFLEET_SERVE_TLS_KEY: key });
    stack.use(hosts);
    await hosts.serve();
    for (const [user, host, reason] of [
      ["bob", "h2", /has no TLS, so this host sends it nothing/],
      ["carol", "h3", /Host "h3" cannot be reached/],
      ["dave", "h4", /Host "h4" cannot be reached/],
    ] as const) {
      await hosts.place(user, host);
      const ran = await hosts.host("h1").run(["spawn", "--user", user]);
      expect(ran).toMatchObject({ code: 7, stderr: expect.stringMatching(reason) });
    }
  });
});
