import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { isFleetError } from "../../src/base/errors.js";
import { DoorFleet } from "../door/harness.js";
import { FakeGitHub } from "../fixtures/models/fake-github.js";
import { removeFolder } from "../fixtures/remove-folder.js";

/** The lifetime of the App's tokens in these tests. */
const LIFETIME_MS = 5_000;
const STEP_MS = 1_500;

type Auth = Record<string, unknown>;

/** A fleet whose sessions use the fake GitHub. */
async function openFleet(github: FakeGitHub, auth: Auth, more: object = {}): Promise<DoorFleet> {
  return await DoorFleet.open({
    env: github.env,
    config: { provider: null, auth, session: { model: "gpt-5" }, ...more } as never,
  });
}

/** A folder for files with secrets. The disposal removes it. */
class Secrets implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), "fleet-renewal-"));

  put(name: string, secret: string): string {
    const path = join(this.#folder, name);
    writeFileSync(path, secret, { mode: 0o600 });
    return path;
  }

  remove(name: string): void {
    rmSync(join(this.#folder, name));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await removeFolder(this.#folder);
  }
}

function appOf(github: FakeGitHub, secrets: Secrets): Auth {
  const { appId, installationId, key } = github;
  return { githubApp: { appId, installationId, privateKey: { file: secrets.put("app.pem", key) } } };
}

async function refusalOf(turn: Promise<unknown>) {
  const error: unknown = await turn.then(
    (reply) => expect.fail(`the turn was answered: ${JSON.stringify(reply)}`),
    (reason: unknown) => reason,
  );
  if (!isFleetError(error)) throw error;
  return error;
}

afterEach(() => void vi.useRealTimers());

describe("the tokens of a GitHub App", () => {
  it.each(["per-user", "shared"] as const)(
    "on a %s server, turns over three lifetimes of a GitHub App's token always use a token that is still valid",
    async (isolation) => {
      vi.useFakeTimers({ toFake: ["Date"] });
      await using github = await FakeGitHub.start({ lifetimeMs: LIFETIME_MS });
      await using secrets = new Secrets();
      await using at = await openFleet(github, appOf(github, secrets), { isolation });
      const session = await at.fleet.sessions.create({ user: "ann" });
      const client = await at.client("ann");
      const other = await client.createSession({ onPermissionRequest: () => ({ kind: "reject" }) });
      const [{ pid } = { pid: null }] = await at.fleet.servers.list();
      for (let ms = 0; ms <= 3 * LIFETIME_MS; ms += STEP_MS) {
        const { text } = await at.fleet.sessions.send(session, `at ${ms}`);
        expect(text).toMatch(new RegExp(`^by ghs_minted\\d+: at ${ms}$`));
        const answer = await other.sendAndWait({ prompt: `door at ${ms}` });
        expect(answer?.data.content).toMatch(new RegExp(`^by ghs_minted\\d+: door at ${ms}$`));
        vi.advanceTimersByTime(STEP_MS);
      }
      expect(github.asked.every(({ status }) => status === 200)).toBe(true);
      expect(new Set(github.asked.map(({ token }) => token)).size).toBeGreaterThanOrEqual(4);
      const [{ pid: now } = { pid: null }] = await at.fleet.servers.list();
      expect(now).toBe(pid);
    },
  );

  it("after GitHub suspended the App, library and front-door turns fail before any model request", async () => {
    vi.useFakeTimers({ toFake: ["Date"] });
    await using github = await FakeGitHub.start({ lifetimeMs: LIFETIME_MS });
    await using secrets = new Secrets();
    await using at = await openFleet(github, appOf(github, secrets));
    const session = await at.fleet.sessions.create({ user: "ann" });
    const client = await at.client("ann");
    const other = await client.createSession({ onPermissionRequest: () => ({ kind: "reject" }) });
    await at.fleet.sessions.send(session, "one");
    await other.sendAndWait({ prompt: "one" });
    github.mintStatus = 403;
    vi.advanceTimersByTime(LIFETIME_MS);
    const before = github.asked.length;
    const refusal = await refusalOf(at.fleet.sessions.send(session, "two"));
    expect(refusal).toMatchObject({ code: "FLEET_CREDENTIAL_REFUSED", exit: 7 });
    expect(refusal.message).toContain("403");
    await expect(other.sendAndWait({ prompt: "two" })).rejects.toThrow("GitHub refuses a token to installation 42");
    expect(github.asked).toHaveLength(before);
    github.mintStatus = undefined;
    vi.advanceTimersByTime(LIFETIME_MS);
    expect((await at.fleet.sessions.send(session, "three")).text).toContain("three");
    expect((await other.sendAndWait({ prompt: "three" }))?.data.content).toContain("three");
  });

  it("after GitHub revoked a token before its expiry, one turn fails, and the next turn gets a new token", async () => {
    await using github = await FakeGitHub.start();
    await using secrets = new Secrets();
    await using at = await openFleet(github, appOf(github, secrets));
    const session = await at.fleet.sessions.create({ user: "ann" });
    const client = await at.client("ann");
    const other = await client.createSession({ onPermissionRequest: () => ({ kind: "reject" }) });
    await at.fleet.sessions.send(session, "one");
    github.revokeAll();
    expect(await refusalOf(at.fleet.sessions.send(session, "two"))).toMatchObject({ code: "FLEET_CREDENTIAL_REFUSED" });
    expect((await at.fleet.sessions.send(session, "three")).text).toBe("by ghs_minted2: three");
    github.revokeAll();
    await expect(other.sendAndWait({ prompt: "four" })).rejects.toThrow("credentials may be expired");
    expect((await other.sendAndWait({ prompt: "five" }))?.data.content).toBe("by ghs_minted3: five");
  });
});

describe("a user's token", () => {
  it("the next turn of an open session uses a new token from the user's file, on the same server", async () => {
    await using github = await FakeGitHub.start();
    await using secrets = new Secrets();
    const path = secrets.put("ann", github.accept("gho_one"));
    await using at = await openFleet(github, { githubToken: { file: path.replace(/ann$/, "{user}") } });
    const session = await at.fleet.sessions.create({ user: "ann" });
    const client = await at.client("ann");
    const other = await client.createSession({ onPermissionRequest: () => ({ kind: "reject" }) });
    const { pid } = await at.serverOf("ann");
    expect((await at.fleet.sessions.send(session, "a")).text).toBe("by gho_one: a");
    expect((await other.sendAndWait({ prompt: "a" }))?.data.content).toBe("by gho_one: a");
    secrets.put("ann", github.accept("gho_two"));
    github.revoke("gho_one");
    expect((await at.fleet.sessions.send(session, "b")).text).toBe("by gho_two: b");
    expect((await other.sendAndWait({ prompt: "b" }))?.data.content).toBe("by gho_two: b");
    expect((await at.serverOf("ann")).pid).toBe(pid);
  });

  it("a turn fails, and uses no other token, when the user's token file is gone or has a token that is refused", async () => {
    await using github = await FakeGitHub.start();
    await using secrets = new Secrets();
    const path = secrets.put("ann", github.accept("gho_one"));
    await using at = await openFleet(github, { githubToken: { file: path } });
    const session = await at.fleet.sessions.create({ user: "ann" });
    const client = await at.client("ann");
    const other = await client.createSession({ onPermissionRequest: () => ({ kind: "reject" }) });
    await at.fleet.sessions.send(session, "a");
    await other.sendAndWait({ prompt: "a" });
    const before = github.asked.length;
    secrets.remove("ann");
    expect(await refusalOf(at.fleet.sessions.send(session, "b"))).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE" });
    await expect(other.sendAndWait({ prompt: "b" })).rejects.toThrow("does not exist");
    secrets.put("ann", "gho_unknown");
    expect(await refusalOf(at.fleet.sessions.send(session, "c"))).toMatchObject({ code: "FLEET_CREDENTIAL_REFUSED" });
    await expect(other.sendAndWait({ prompt: "c" })).rejects.toThrow("did not accept the token");
    expect(await refusalOf(at.fleet.sessions.create({ user: "ann" }))).toMatchObject({
      code: "FLEET_CREDENTIAL_REFUSED",
    });
    // The server still has the first token, which GitHub accepts.
    expect(github.asked).toHaveLength(before);
    secrets.put("ann", "gho_one");
    expect((await at.fleet.sessions.send(session, "d")).text).toBe("by gho_one: d");
  });

  it("turns of a user who signed on with a GitHub token use that token, and not the server's token", async () => {
    await using github = await FakeGitHub.start();
    await using secrets = new Secrets();
    const path = secrets.put("fleet", github.accept("gho_fleet"));
    await using at = await openFleet(github, {}, { identity: { github: { api: github.url } } });
    await at.fleet.servers.spawn("owner-of-gho_own", { token: { from: "file", path } });
    const client = await at.connect(at.url, github.accept("gho_own"));
    const session = await client.createSession({ onPermissionRequest: () => ({ kind: "reject" }) });
    for (const prompt of ["a", "b"])
      expect((await session.sendAndWait({ prompt }))?.data.content).toBe(`by gho_own: ${prompt}`);
    expect(github.asked.map(({ token }) => token)).toEqual(["gho_own", "gho_own"]);
  });

  it("the command of auth.githubToken runs at most once in 5 s, but again at once after GitHub refused its token", async () => {
    await using github = await FakeGitHub.start();
    await using secrets = new Secrets();
    const runs = secrets.put("runs", "");
    const script = secrets.put("script", `echo >> ${runs}; echo ${github.accept("gho_one")}`);
    await using at = await openFleet(github, { githubToken: { command: `sh ${script}` } });
    vi.useFakeTimers({ toFake: ["performance"] });
    const session = await at.fleet.sessions.create({ user: "ann" });
    const turn = async (prompt: string) => (await at.fleet.sessions.send(session, prompt)).text;
    const timesRun = () => readFileSync(runs, "utf8").length;
    vi.advanceTimersByTime(5_000);
    const before = timesRun();
    expect(await turn("a")).toBe("by gho_one: a");
    vi.advanceTimersByTime(4_900);
    expect(await turn("b")).toBe("by gho_one: b");
    expect(timesRun()).toBe(before + 1);
    github.revoke("gho_one");
    secrets.put("script", `echo >> ${runs}; echo ${github.accept("gho_two")}`);
    expect(await refusalOf(turn("c"))).toMatchObject({ code: "FLEET_CREDENTIAL_REFUSED" });
    expect(await turn("d")).toBe("by gho_two: d");
    expect(timesRun()).toBe(before + 2);
  });

  it("a turn fails if the command of auth.githubToken fails, and uses the last token if the command was killed", async () => {
    await using github = await FakeGitHub.start();
    await using secrets = new Secrets();
    const script = secrets.put("script", `echo ${github.accept("gho_one")}`);
    chmodSync(script, 0o700);
    await using at = await openFleet(github, { githubToken: { command: `sh ${script}` } });
    vi.useFakeTimers({ toFake: ["performance"] });
    const session = await at.fleet.sessions.create({ user: "ann" });
    const turn = async (prompt: string) => {
      vi.advanceTimersByTime(5_000);
      return await at.fleet.sessions.send(session, prompt);
    };
    expect((await turn("a")).text).toBe("by gho_one: a");
    secrets.put("script", `echo ${github.accept("gho_two")}`);
    expect((await turn("b")).text).toBe("by gho_two: b");
    const runs = secrets.put("runs", "");
    secrets.put("script", `echo >> ${runs}; kill -9 $$`);
    expect((await turn("c")).text).toBe("by gho_two: c");
    vi.advanceTimersByTime(4_900);
    expect((await at.fleet.sessions.send(session, "c again")).text).toBe("by gho_two: c again");
    expect(readFileSync(runs, "utf8")).toBe("\n");
    secrets.put("script", "echo no >&2; exit 1");
    const before = github.asked.length;
    expect(await refusalOf(turn("d"))).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE" });
    expect(github.asked).toHaveLength(before);
  });
});
