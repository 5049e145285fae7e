import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { isLocal, problemsOf } from "../../src/runtime/files/shared-storage.js";
import { TestHosts } from "../fixtures/hosts/hosts.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`shared storage is not tested with hosts: ${problem}`);
const isRoot = process.getuid?.() === 0;
if (!isRoot) console.warn("file systems without some properties are not tested: mounting them takes root");

it("isLocal recognizes the types of file systems that only one machine can see", () => {
  expect(isLocal({ type: "ext4", source: "", mountPoint: "/" })).toBe(true);
  expect(isLocal({ type: "nfs4", source: "", mountPoint: "/" })).toBe(false);
});

describe("the check of a folder's file system", () => {
  let folder: string;
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  it("problemsOf finds no problem on a good file system, and leaves no test file behind", async () => {
    folder = mkdtempSync(join(tmpdir(), "copilotfleet-fs-"));
    expect(await problemsOf(folder)).toEqual([]);
    expect(readdirSync(folder)).toEqual([]);
  });

  it.skipIf(!isRoot)("problemsOf reports a file system that does not support symbolic links", async () => {
    folder = mkdtempSync(join(tmpdir(), "copilotfleet-fs-"));
    execFileSync("mount", ["-t", "tmpfs", "-o", "nosymfollow", "fleet", folder]);
    try {
      expect(await problemsOf(folder)).toEqual(["has no symbolic links (ELOOP)"]);
    } finally {
      execFileSync("umount", [folder]);
    }
  });
});

describe.skipIf(problem !== undefined)("the fleet, with the folder that hosts share,", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it("doctor and serve detect whether a host's folder is the one that the other hosts share", async () => {
    await using hosts = new TestHosts({ redis, names: ["h1", "h2", "h3"], storage: "shared" });
    const [h1, h2, h3] = ["h1", "h2", "h3"].map((name) => hosts.host(name));
    if (h1 === undefined || h2 === undefined || h3 === undefined) throw new Error("there are three hosts");
    const check = async (host: typeof h1) => {
      const { checks } = (await host.run(["doctor", "--json"])).json<DoctorResult>();
      return checks.find(({ name }) => name === "shared storage");
    };
    expect(await check(h1)).toMatchObject({
      ok: true,
      detail: expect.stringContaining("nothing proves that other hosts share it"),
    });
    await h1.serve(hosts.store);
    await h2.serve(hosts.store);
    expect(await check(h2)).toMatchObject({ ok: true, detail: expect.stringContaining("shared with h1, h2") });

    const other = join(h3.folder, "other");
    mkdirSync(other, { mode: 0o700 });
    h3.env.COPILOTFLEET_STORAGE_SHARED = other;
    expect(await check(h3)).toMatchObject({
      ok: false,
      detail: expect.stringContaining("not the folder that h1, h2 shares"),
    });
    const refused = await h3.run(["serve"]);
    expect({ code: refused.code, stderr: refused.stderr }).toMatchObject({
      code: 7,
      stderr: expect.stringContaining('"h1"'),
    });
    expect(readdirSync(other)).toEqual([]);
    // serve neither creates a folder that is missing nor waits for it.
    const slip = join(h3.folder, "not", "mounted");
    const file = join(h3.folder, "file");
    writeFileSync(file, "");
    for (const wrong of [slip, file, "/proc"]) {
      const unusable = await h3.run(["serve", "--json"], { env: { COPILOTFLEET_STORAGE_SHARED: wrong } });
      expect(unusable.code).toBe(7);
      expect(unusable.stdout).toContain("FLEET_STORAGE_UNUSABLE");
      expect(unusable.stdout).toContain(wrong);
    }
    expect(existsSync(dirname(slip))).toBe(false);
    delete h3.env.COPILOTFLEET_STORAGE_SHARED;
    expect((await h3.run(["serve"])).stderr).toContain("Set storage.shared on all hosts");
  });
});
