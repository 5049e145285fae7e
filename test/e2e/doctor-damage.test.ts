import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { unused } from "../fixtures/sessions/unused.js";
import { damageRecord, damageState } from "../fixtures/store/database.js";

const fleet = testFleet();

const store = () => openStore("file", fleet.root);

/** Runs `doctor --quick`, and returns its exit code, and its checks by name. */
async function doctor(args: readonly string[] = []) {
  const ran = await fleet.run(["doctor", "--quick", ...args, "--json"]);
  const { checks } = ran.json<DoctorResult>();
  return { code: ran.code, checks: new Map(checks.map((check) => [check.name, check])) };
}

// So that a failed test leaves no damage to the next one.
afterEach(async () => void (await doctor(["--fix"])));

describe("damage", () => {
  it("doctor fails for a damaged state, every command names doctor --fix, and that restores the last copy", async () => {
    const [copied, lost] = [unused("copied"), unused("lost")];
    await fleet.create("alice", copied);
    await fleet.send("alice", copied, "hi");
    await store().copy();
    await fleet.create("alice", lost);
    const damaged = damageState(fleet.root);

    for (const args of [
      ["list"],
      ["send", copied, "x", "--user", "alice"],
      ["create", "--user", "alice"],
      ["delete", copied, "--yes"],
      ["gc"],
      ["spawn", "--user", "bob"],
      ["stop", "--all"],
      ["token", "list"],
      ["store", "migrate", "--to", "redis://127.0.0.1:1/0"],
    ]) {
      const error = await fleet.refusal(7, args);
      expect(error, args.join(" ")).toMatchObject({
        code: "FLEET_STATE_CORRUPT",
        message: expect.stringContaining(join(fleet.root, "state.db")),
      });
      expect(error.suggestions, args.join(" ")).toContain("copilotfleet doctor --fix");
    }
    const seen = await doctor();
    expect(seen.code).toBe(3);
    const found = {
      ok: false,
      level: "failed",
      detail: "damaged files: 1",
      items: [expect.stringMatching(/^state\.db: .*file is not a database/)],
      fix: "Check the disk. Add --fix to restore them from their copies.",
      fixed: false,
    };
    expect(seen.checks.get("damage")).toMatchObject(found);
    expect(readFileSync(join(fleet.root, "state.db"))).toEqual(damaged);

    const fixed = (await doctor(["--fix"])).checks.get("damage");
    expect(fixed).toMatchObject({
      level: "ok",
      fixed: true,
      detail: "damaged files: 1; changes since the copies were made are lost",
      items: [expect.stringMatching(/^state\.db: restored from \S+Z; the damaged file is kept as \S+$/)],
    });
    const [keptAs = ""] = /\S+$/.exec(fixed?.items[0] ?? "") ?? [];
    expect(keptAs).toMatch(join(fleet.root, "corrupt-state.db-"));
    expect(readFileSync(keptAs)).toEqual(damaged);
    expect((await doctor()).checks.get("damage")).toMatchObject({ level: "ok", detail: "none", items: [] });
    expect(await fleet.send("alice", copied, "again")).toBe("[turn 2] again");
    // A session that the copy does not know still has its history in the home of its server, so its user can go on.
    expect(await fleet.send("alice", lost, "still there?")).toBe("[turn 1] still there?");
  });

  it("doctor --fix begins damaged records again if there is no copy, and the servers go on", async () => {
    const id = unused("forgotten");
    await fleet.create("alice", id);
    const before = await fleet.ps();
    rmSync(join(fleet.root, "state.db.copy"), { force: true });
    const damaged = damageState(fleet.root);
    const fixed = (await doctor(["--fix"])).checks.get("damage");
    expect(fixed).toMatchObject({
      level: "ok",
      fixed: true,
      items: [
        expect.stringMatching(
          /^state\.db: begun again, because there is no copy; the damaged file is kept as \S+\/corrupt-state\.db-\S+$/,
        ),
      ],
    });
    expect(readFileSync(/\S+$/.exec(fixed?.items[0] ?? "")?.[0] ?? "")).toEqual(damaged);
    expect(fleet.sessionIds()).toEqual([]);
    expect(await fleet.ps()).toMatchObject(before.map(({ id: server, pid }) => ({ id: server, pid })));
    await fleet.create("alice", unused("new"));
  });

  it("doctor finds a single record that a faulty disk has changed, and doctor --fix restores it", async () => {
    const id = unused("changed");
    await fleet.create("alice", id);
    await store().copy();
    damageRecord(fleet.root, "session", id);
    expect(await fleet.refusal(7, ["send", id, "hi", "--user", "alice"])).toMatchObject({
      code: "FLEET_STATE_CORRUPT",
      message: expect.stringContaining(`the session "${id}" is not valid JSON`),
      suggestions: expect.arrayContaining(["copilotfleet doctor --fix"]),
    });
    await expect(store().copy(), "a copy of a damaged file").rejects.toMatchObject({ code: "FLEET_STATE_CORRUPT" });
    expect((await doctor()).checks.get("damage")).toMatchObject({ level: "failed", detail: "damaged files: 1" });
    expect((await doctor(["--fix"])).checks.get("damage")).toMatchObject({ level: "ok", fixed: true });
    expect(await fleet.send("alice", id, "hi")).toBe("[turn 1] hi");
  });

  it("doctor --fix restores damaged records and rebuilds a damaged registry in one run", async () => {
    const id = unused("both");
    await fleet.create("alice", id);
    await fleet.send("alice", id, "hi");
    await store().copy();
    const before = await fleet.ps();
    damageState(fleet.root);
    writeFileSync(join(fleet.root, "registry.json"), "damaged");
    const { checks } = await doctor(["--fix"]);
    for (const name of ["damage", "registry"]) expect(checks.get(name)).toMatchObject({ level: "ok", fixed: true });
    expect(await fleet.ps()).toMatchObject(before.map(({ id: server, pid, user }) => ({ id: server, pid, user })));
    expect(await fleet.send("alice", id, "on")).toBe("[turn 2] on");
  });
});
