import { readFileSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";

const fleet = testFleet();

it("ps names the sandbox of each server, and the log of the server names what it does not restrict", async () => {
  const { sandbox, log } = await fleet.spawn("seen");
  expect(sandbox).toEqual({ mode: "landlock", not: ["process-list", "unix-sockets", "network", "resources"] });
  expect(await fleet.ok(["ps", "-o", "wide", "--user", "seen"])).toMatch(/SANDBOX.*\blandlock\b/s);
  expect(readFileSync(log, "utf8")).toContain(
    "in the sandbox landlock without process-list, unix-sockets, network, resources).",
  );
});

it("a server with the provider's key in its memory says so", async () => {
  const env = {
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: "http://127.0.0.1:9/v1",
    COPILOTFLEET_PROVIDER_API_KEY_ENV: "KEY",
    KEY: "k",
  };
  expect((await fleet.spawn("keyed", { env })).sandbox.not).toContain("provider-key");
});

it("after a restart with another sandbox.mode, the server has the new sandbox", async () => {
  await fleet.spawn("changed");
  await fleet.ok(["restart", "--user", "changed"], { env: { COPILOTFLEET_SANDBOX_MODE: "none" } });
  expect((await fleet.server("changed")).sandbox.mode).toBe("none");
  await fleet.ok(["restart", "--user", "changed"]);
  expect((await fleet.server("changed")).sandbox.mode).toBe("landlock");
});

const EXPOSING: [string, () => string][] = [
  ["the state folder", () => fleet.root],
  ["a folder above the state folder", () => fleet.folder],
  ["another user's home", () => join(fleet.root, "servers")],
  [
    "a link to the state folder",
    () => {
      const link = join(fleet.folder, "link");
      rmSync(link, { force: true });
      symlinkSync(fleet.root, link);
      return link;
    },
  ],
];

it.each(EXPOSING)("neither --cwd nor sandbox.binds gives a server %s", async (_, folderOf) => {
  const folder = folderOf();
  const cwd = await fleet.refusal(3, ["spawn", "--user", "refused", "--cwd", folder]);
  expect(cwd).toMatchObject({
    code: "FLEET_SANDBOX_UNSAFE",
    message: expect.stringContaining(`--cwd: "${folder}" would give a server access to "${fleet.root}"`),
  });
  const env = { COPILOTFLEET_SANDBOX_BINDS: folder };
  const bind = await fleet.refusal(3, ["spawn", "--user", "refused"], { env });
  expect(bind).toMatchObject({
    code: "FLEET_SANDBOX_UNSAFE",
    message: expect.stringContaining(`sandbox.binds: "${folder}" would give`),
  });
  expect((await fleet.ps()).filter(({ user }) => user === "refused")).toEqual([]);
});

it("without a sandbox, --cwd may be any folder, because it protects nothing", async () => {
  const env = { COPILOTFLEET_SANDBOX_MODE: "none" };
  await fleet.ok(["spawn", "--user", "freer", "--cwd", fleet.folder], { env });
});
