import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { DoorFleet } from "../door/harness.js";
import { FakeGitHub } from "../fixtures/models/fake-github.js";
import { startWireModel } from "../fixtures/models/wire-model.js";
import { removeFolder } from "../fixtures/remove-folder.js";

/** How long tokens and keys are valid, in milliseconds of real time. */
const LIFETIME_MS = 5_000;
/** For how many lifetimes the sessions run turns. */
const LIFETIMES = process.env.SOAK === undefined ? 1 : 3;

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "fleet-renewal-"));
  onTestFinished(async () => await removeFolder(folder));
  return folder;
}

/** Runs all turns again and again, for `LIFETIMES` lifetimes and until `isOver`. No turn may fail. */
async function takeTurns(turns: (() => Promise<unknown>)[], isOver = (): boolean => true): Promise<void> {
  const end = performance.now() + LIFETIMES * LIFETIME_MS + 1_000;
  while (performance.now() < end || !isOver()) {
    for (const turn of turns) await turn();
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

/** Expects a refusal. The long form expects it within 5 s, as the fleet promises on a machine that is not busy. */
async function expectRefusal(turn: () => Promise<unknown>): Promise<void> {
  const begun = performance.now();
  await expect(turn()).rejects.toThrow();
  if (process.env.SOAK !== undefined) expect(performance.now() - begun).toBeLessThan(5_000);
}

const OPTIONS = { streaming: true, onPermissionRequest: () => ({ kind: "reject" as const }) };

describe("sessions of the library and of the front door whose credentials expire in real time", () => {
  it("sessions run turns while GitHub App tokens expire every 5 s, and fail once the App is suspended", async () => {
    await using github = await FakeGitHub.start({ lifetimeMs: LIFETIME_MS });
    const file = join(temporaryFolder(), "key");
    writeFileSync(file, github.key, { mode: 0o600 });
    const { appId, installationId } = github;
    const auth = { githubApp: { appId, installationId, privateKey: { file } } };
    const config = { provider: null, auth, session: { model: "gpt-5" } };
    await using at = await DoorFleet.open({ env: github.env, config });
    const session = await at.fleet.sessions.create({ user: "ann" });
    const other = await (await at.client("ann")).createSession(OPTIONS);
    const byLibrary = async () => await at.fleet.sessions.send(session, "hello");
    const byDoor = async () => await other.sendAndWait({ prompt: "hello" });
    await takeTurns([byLibrary, byDoor]);
    expect(github.asked.every(({ status }) => status === 200)).toBe(true);
    expect(new Set(github.asked.map(({ token }) => token)).size).toBeGreaterThan(LIFETIMES);
    github.mintStatus = 403;
    github.revokeAll();
    await expectRefusal(byLibrary);
    await expectRefusal(byDoor);
    const before = github.asked.length;
    await expectRefusal(byLibrary);
    await expectRefusal(byDoor);
    expect(github.asked).toHaveLength(before);
  });

  it.each(["file", "command"] as const)(
    "sessions run turns while the provider key from a %s changes every 5 s, and fail once it is refused",
    async (from) => {
      const file = join(temporaryFolder(), "key");
      let keys = 0;
      const next = () => {
        model.key = `sk-${++keys}`;
        writeFileSync(file, model.key, { mode: 0o600 });
      };
      await using model = await startWireModel("");
      next();
      const source = from === "command" ? { apiKey: { command: `cat ${file}` } } : { apiKey: { file: file } };
      const provider = { type: "openai", baseUrl: `${model.origin}/v1`, ...source };
      await using at = await DoorFleet.open({ config: { provider } });
      const session = await at.fleet.sessions.create({ user: "ann" });
      const other = await (await at.client("ann")).createSession(OPTIONS);
      const byLibrary = async () => await at.fleet.sessions.send(session, "hello");
      const byDoor = async () => await other.sendAndWait({ prompt: "hello" });
      let usedMs: number | undefined = performance.now();
      const change = async () => {
        // Count a key's lifetime from its first turns, because after a refused key the fleet may wait 5 s for the next.
        usedMs ??= performance.now();
        if (performance.now() - usedMs < LIFETIME_MS) return;
        usedMs = undefined;
        next();
      };
      await takeTurns([change, byLibrary, byDoor], () => keys > LIFETIMES);
      model.key = "sk-revoked";
      await expectRefusal(byLibrary);
      await expectRefusal(byDoor);
    },
  );

  it.each(["file", "command"] as const)(
    "turns are refused at most 5 s after the %s stops yielding a token, and at once after GitHub revokes the token",
    async (kind) => {
      await using github = await FakeGitHub.start();
      const file = join(temporaryFolder(), "token");
      const put = (token: string) => writeFileSync(file, token, { mode: 0o600 });
      put(github.accept("gho_one"));
      const auth = kind === "file" ? { githubToken: { file: file } } : { githubToken: { command: `cat ${file}` } };
      await using at = await DoorFleet.open({
        env: github.env,
        config: { provider: null, auth, session: { model: "gpt-5" } },
      });
      const session = await at.fleet.sessions.create({ user: "ann" });
      const other = await (await at.client("ann")).createSession(OPTIONS);
      const byLibrary = async () => await at.fleet.sessions.send(session, "hello");
      const byDoor = async () => await other.sendAndWait({ prompt: "hello" });
      await byLibrary();
      await byDoor();
      for (const turn of [byLibrary, byDoor]) {
        rmSync(file);
        const goneMs = performance.now();
        let acceptedMs = goneMs;
        for (let isAccepted = true; isAccepted; ) {
          const begunMs = performance.now();
          isAccepted = await turn().then(
            () => true,
            () => false,
          );
          if (isAccepted) acceptedMs = begunMs;
        }
        expect(acceptedMs - goneMs, "the begin of the last turn that was accepted").toBeLessThan(5_000);
        put("gho_one");
        await turn();
      }
      github.revokeAll();
      await expectRefusal(byLibrary);
      await expectRefusal(byDoor);
      expect(github.asked.every(({ token }) => token === "gho_one")).toBe(true);
    },
  );
});
