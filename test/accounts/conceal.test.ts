import { readFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Events } from "../../src/accounts/audit/events.js";
import { hashHolds } from "../../src/accounts/audit/line.js";
import { concealInEvents, Pseudonyms } from "../../src/accounts/audit/pseudonyms.js";
import { readEvents } from "../../src/accounts/audit/query.js";
import { verifyLog } from "../../src/accounts/audit/verify.js";
import type { FleetEvent, NewEvent } from "../../src/base/event.js";
import { LogDatabase } from "../fixtures/events-log.js";
import { eventually } from "../fixtures/eventually.js";
import { found } from "../fixtures/found.js";
import { removeFolder } from "../fixtures/remove-folder.js";

let root: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "copilotfleet-conceal-"));
});
afterEach(async () => {
  vi.restoreAllMocks();
  await removeFolder(root);
});

/** The store of a fleet whose pseudonym key is `key`, or else the first key that a host offers. */
function fleetStore(key?: string) {
  const fleet = { key };
  const pseudonymKey = async (offered: string) => {
    fleet.key ??= offered;
    return fleet.key;
  };
  return { hosts: null, pseudonymKey };
}

async function write(events: readonly NewEvent[], stateRoot = root, store = fleetStore()): Promise<void> {
  const config = { events: { retentionMs: 1e12 } };
  const log = new Events({ store, config, stateRoot, via: "library", warn: () => undefined });
  for (const event of events) {
    log.note(event);
    await log.flush();
  }
}

async function conceal(user: string, stateRoot = root, store = fleetStore()): Promise<Pseudonyms> {
  const pseudonyms = await Pseudonyms.open(stateRoot, store);
  await concealInEvents(stateRoot, { user, names: [] }, pseudonyms);
  return pseudonyms;
}

async function all(stateRoot = root): Promise<FleetEvent[]> {
  return (await readEvents(stateRoot, { limit: 1_000 })).events;
}

describe("pseudonyms in the audit log", () => {
  it("a purge replaces the user's session id `ben`, but not the name of another user, `ben`", async () => {
    await write([
      { type: "session.created", user: "zoe", actor: { user: "zoe" }, sessionId: "ben" },
      { type: "session.created", user: "ben", actor: { user: "ben" }, sessionId: "other" },
    ]);
    const pseudonyms = await Pseudonyms.open(root, fleetStore());
    await concealInEvents(root, { user: "zoe", names: ["ben"] }, pseudonyms);
    const [ofZoe, ofBen] = await all();
    expect(ofZoe).toMatchObject({ user: pseudonyms.of("zoe"), sessionId: pseudonyms.of("ben") });
    expect(ofBen).toMatchObject({ user: "ben", actor: { user: "ben" }, sessionId: "other" });
  });

  it("a name has one pseudonym on all hosts of a fleet, and lines from before a host joined stay valid", async () => {
    const [a, b] = [join(root, "a"), join(root, "b")];
    const about = { type: "token.issued", user: "zoe" } as const;
    await write([about, { ...about, detail: "for zoe" }], b);
    const fleet = fleetStore();
    for (const host of [a, b]) await write([about], host, fleet);
    expect((await verifyLog(b)).brokenAt).toBeNull();
    const pseudonyms = await Promise.all([a, b].map(async (host) => (await conceal("zoe", host, fleet)).of("zoe")));
    expect(pseudonyms[0]).toBe(pseudonyms[1]);
    expect(found(root, ["zoe"])).toEqual([]);
    for (const host of [a, b]) {
      expect((await all(host)).at(-1)?.user).toBe(pseudonyms[0]);
      expect((await verifyLog(host)).brokenAt).toBeNull();
    }
  });

  it("a detail is concealed if it has the user's name as a word, or if the user may have written it", async () => {
    await write([
      { type: "session.shared", user: "ann", detail: "initial al-2 al.b" },
      { type: "session.stolen", user: "ann", detail: "from al: done" },
      { type: "session.stolen", user: "ann", actor: { user: "al" }, detail: "from ben: my secret reason" },
      { type: "session.shared", user: "al", detail: "al-talk" },
    ]);
    const { of } = await conceal("al");
    expect((await all()).map(({ detail }) => detail)).toEqual([
      "initial al-2 al.b",
      of("from al: done"),
      of("from ben: my secret reason"),
      of("al-talk"),
    ]);
    expect((await verifyLog(root)).brokenAt).toBeNull();
  });

  it("events use the fleet's pseudonym key once the store has answered", async () => {
    const key = "0".repeat(64);
    let isAway = true;
    let asked = 0;
    const pseudonymKey = async () => {
      asked++;
      if (isAway) throw new Error("no answer");
      return key;
    };
    const config = { events: { retentionMs: 1e12 } };
    const store = { hosts: null, pseudonymKey };
    const log = new Events({ store, config, stateRoot: root, via: "library", warn: () => undefined });
    const about = { type: "token.issued", user: "zoe" } as const;
    await log.record(about);
    isAway = false;
    await log.record(about);
    // The second event does not ask the store again, so that a short command does not wait twice for it.
    expect(asked).toBe(1);
    const now = performance.now.bind(performance);
    vi.spyOn(performance, "now").mockImplementation(() => now() + 60_000);
    const holds = () => {
      const { of } = Pseudonyms.ofExisting(root);
      return new LogDatabase(root).lines().map((line) => hashHolds(line, of));
    };
    await eventually("a line with the key of the fleet", async () => {
      await log.record(about);
      return readFileSync(join(root, "pseudonym-key"), "utf8").startsWith(key) && holds().at(-1) === true;
    });
    expect(holds().slice(0, 2)).toEqual([false, false]);
    expect((await verifyLog(root)).brokenAt).toBeNull();
  });
});
