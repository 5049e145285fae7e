import { cpSync, readdirSync, readFileSync, watch } from "node:fs";
import { dirname, join } from "node:path";
import type { CopilotSession } from "@github/copilot-sdk";
import { expect, it, onTestFinished } from "vitest";
import type { ServerRecord } from "../../src/base/server.js";
import type { SessionRecord } from "../../src/base/session.js";
import { Fleet, type GcResult } from "../../src/index.js";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import type { Ran } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { seededRandom } from "../fixtures/random.js";
import { makeOld, plantSessions, type Template } from "../fixtures/sessions/gc-sessions.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

const HOUR_MS = 3_600_000;
const OLD_MS = 48 * HOUR_MS;
const EXPIRED = 60;
/**
 * gc is killed at a random moment of its first 700 ms. Node alone needs the first 60 ms to start. On an idle machine,
 * the whole command ends within the 700 ms.
 */
const KILLED_WITHIN_MS = 700;
const TURN_MS = 400;

type Planted = "recorded" | "unrecorded" | "record only" | "own TTL" | "abandoned";
const PLANTED: readonly Planted[] = ["recorded", "unrecorded", "record only", "own TTL", "abandoned"];

/** A fleet in which only alice's server runs. The test's process uses some sessions of this server. */
class Scene {
  readonly fleet: FaultFleet;
  readonly library: Fleet;
  readonly store: Store;
  readonly server: ServerRecord;
  readonly template: Template;
  readonly statePath: string;
  /** For each session that this process uses: how many turns it has had. */
  readonly turns = new Map<string, number>();

  constructor(fleet: FaultFleet, library: Fleet, server: ServerRecord, template: Template) {
    this.fleet = fleet;
    this.library = library;
    this.store = openStore("file", fleet.root);
    this.server = server;
    this.template = template;
    this.statePath = join(server.home, "session-state");
  }

  /** Plants one expired session of the given kind. */
  async plant(id: string, kind: Planted): Promise<void> {
    const ageMs = kind === "own TTL" ? 2 * HOUR_MS : kind === "abandoned" ? 0 : OLD_MS;
    if (kind !== "record only") plantSessions(this.statePath, this.template, [id], ageMs);
    if (kind === "unrecorded") return;
    const then = new Date(Date.now() - ageMs).toISOString();
    const over: Partial<SessionRecord> = { serverId: this.server.id, createdAt: then, lastUsedAt: then, turns: 1 };
    if (kind === "own TTL") over.ttlMs = HOUR_MS;
    if (kind === "abandoned") {
      over.persistence = "ephemeral";
      over.usedBy = { ...ownIdentity(), startTicks: "1" };
    }
    await this.store.sessions.create(sessionRecord(id, over));
  }

  /** Makes the session look as if nobody had used it for a long time. */
  async age(id: string): Promise<void> {
    makeOld(join(this.statePath, id), OLD_MS);
    await this.store.sessions.update(id, (record) => {
      record.lastUsedAt = new Date(Date.now() - OLD_MS).toISOString();
    });
  }

  async turn(session: CopilotSession, prompt: string): Promise<string> {
    const turn = (this.turns.get(session.sessionId) ?? 0) + 1;
    this.turns.set(session.sessionId, turn);
    const { text } = await this.library.sessions.send(session, prompt);
    expect(text, "the history is whole").toMatch(new RegExp(`^\\[turn ${turn}\\] `));
    return text;
  }

  folders(): string[] {
    return readdirSync(this.statePath).toSorted();
  }

  async records(): Promise<string[]> {
    return (await this.store.sessions.list()).map(({ id }) => id).toSorted();
  }
}

async function scene(): Promise<Scene> {
  const fleet = await faultFleet();
  const library = await Fleet.open({ env: fleet.env, cwd: "/" });
  onTestFinished(() => library.close());
  await fleet.json(["create", "--user", "alice", "--id", "template", "--prompt", "hi"]);
  const server = await fleet.record("alice");
  const folder = join(fleet.root, "..", "template");
  cpSync(join(server.home, "session-state", "template"), folder, { recursive: true });
  await fleet.json(["delete", "template"]);
  return new Scene(fleet, library, server, { folder, id: "template" });
}

/**
 * Runs gc. Kills it after `kill` milliseconds, as soon as the folder `kill.atChangeOf` changes, or (null) not at all.
 * Resolves with null if gc was killed.
 */
async function gc(fleet: FaultFleet, kill: number | { atChangeOf: string } | null): Promise<GcResult | null> {
  const { child, done } = fleet.start(["gc", "--ttl", "24h", "--json"]);
  const end = () => void child.kill("SIGKILL");
  const timer = typeof kill === "number" ? setTimeout(end, kill) : undefined;
  const watcher = typeof kill === "object" && kill !== null ? watch(kill.atChangeOf, end) : undefined;
  const finished: Ran = await done;
  clearTimeout(timer);
  watcher?.close();
  if (finished.signal === "SIGKILL") return null;
  expect(finished).toMatchObject({ code: 0, stderr: "" });
  return JSON.parse(finished.stdout) as GcResult;
}

it("gc deletes every expired session and none in use, even if gc is killed at any moment or runs twice at once", async () => {
  const random = seededRandom("gc rounds");
  const at = await scene();
  const { fleet, library } = at;
  const user = "alice";
  const busy = await library.sessions.create({ user, sessionId: "busy" });
  const loaded = await library.sessions.create({ user, sessionId: "loaded" });
  const leased = await library.sessions.create({ user, sessionId: "leased" });
  for (const session of [busy, loaded, leased]) await at.turn(session, "first");
  await library.sessions.leave(leased);
  const { lease } = await fleet.json<{ lease: { token: string } }>(["lock", "leased", "--user", user, "--ttl", "1h"]);
  const inUse = ["busy", "leased", "loaded"];
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)] as T;

  for (let round = 0; round < rounds(2, 100); round++) {
    const ids = Array.from({ length: EXPIRED }, (_, index) => `expired-${round}-${index}`);
    for (const id of ids) await at.plant(id, pick(PLANTED));
    const turn = at.turn(busy, `!delay ${TURN_MS} x`);
    await eventually("the turn", async () => {
      const history = readFileSync(join(at.statePath, "busy", "events.jsonl"), "utf8");
      return history.split('"type":"user.message"').length - 1 === at.turns.get("busy");
    });
    for (const id of inUse) await at.age(id);

    const many = random() < 0.5 ? 2 : 1;
    const kills = Array.from({ length: many }, () => (random() < 0.6 ? random() * KILLED_WITHIN_MS : null));
    const runs = await Promise.all(kills.map((kill) => gc(fleet, round === 0 ? { atChangeOf: at.statePath } : kill)));
    if (round === 0) expect(runs).toContain(null);
    await turn;
    if (random() < 0.3) await at.turn(loaded, "hello");
    for (const id of inUse) if (random() < 0.5) await at.age(id);
    const last = await gc(fleet, null);

    expect(at.folders(), `round ${round}`).toEqual(inUse);
    expect(await at.records()).toEqual(inUse);
    expect(readdirSync(dirname(at.server.home))).not.toContain(".copilotfleet-gc");
    expect(readdirSync(fleet.root).filter((name) => name.startsWith("."))).toEqual([]);
    const reported = [...runs, last].flatMap((run) => run?.deleted.map(({ id }) => id) ?? []);
    expect(new Set(reported).size, "each is reported once").toBe(reported.length);
    if (!runs.includes(null)) expect(reported.toSorted()).toEqual(ids.toSorted());
    for (const run of [...runs, last]) for (const { id } of run?.skipped ?? []) expect(inUse).toContain(id);
  }
  await at.turn(loaded, "last");
  await at.turn(busy, "last");
  await fleet.json(["unlock", "leased", "--token", lease.token]);
  await at.turn(await library.sessions.resume("leased", { user }), "last");
});

it("if a user returns to an expired session during gc, gc either deletes the session or leaves it intact", async () => {
  const random = seededRandom("gc beside those who come back");
  const at = await scene();
  const { fleet } = at;
  for (let round = 0; round < rounds(2, 100); round++) {
    const ids = Array.from({ length: EXPIRED }, (_, index) => `expired-${round}-${index}`);
    for (const id of ids) await at.plant(id, "recorded");
    const back = `expired-${round}-${Math.floor(random() * EXPIRED)}`;
    const collecting = new Promise((resolve) => setTimeout(resolve, random() * 400)).then(() => gc(fleet, null));
    const sent = await fleet.run(["send", back, "back", "--user", "alice", "--json"]);
    const collected = await collecting;
    const deleted = collected?.deleted.map(({ id }) => id) ?? [];
    if (sent.code === 0) {
      expect(JSON.parse(sent.stdout), "the history is whole").toMatchObject({ reply: "[turn 2] back" });
      expect(deleted).not.toContain(back);
      expect(at.folders()).toEqual([back]);
      expect(await at.records()).toEqual([back]);
      await fleet.json(["delete", back]);
    } else {
      expect(errorOf(sent)).toMatchObject({ code: expect.stringMatching(/^FLEET_SESSION_(NOT_FOUND|LOST)$/) });
      expect(deleted).toContain(back);
      expect(at.folders()).toEqual([]);
      expect(await at.records()).toEqual([]);
    }
  }
});
