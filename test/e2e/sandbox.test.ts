import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { startWireModel } from "../fixtures/models/wire-model.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { TestAuthority } from "../fixtures/tls/authority.js";

const fleet = testFleet();
const CODE = fileURLToPath(new URL("../../dist", import.meta.url));

/** Without bwrap, root gets no sandbox. */
const isSandboxed = bwrapProblem === undefined || process.getuid?.() !== 0;

const SEEN: { setting: string; mode: string; not: string[] }[] = [
  // Landlock alone cannot restrict root.
  ...(process.getuid?.() === 0
    ? []
    : [
        {
          setting: "landlock",
          mode: "landlock",
          not: ["metadata", "process-list", "ipc", "network", "resources"],
        },
      ]),
  // Where bwrap does not work, test/faults/sandbox-fallback.test.ts tests what `auto` chooses instead.
  ...(bwrapProblem === undefined ? [{ setting: "auto", mode: "bwrap", not: ["network", "resources"] }] : []),
];

it.each(SEEN)(
  "with sandbox.mode $setting, ps shows the sandbox $mode, and the server's log names what it does not restrict",
  async ({ setting, mode, not }) => {
    const user = `seen-${setting}`;
    const { id, sandbox, log } = await fleet.spawn(user, { env: { COPILOTFLEET_SANDBOX_MODE: setting } });
    expect(sandbox).toEqual({ mode, not });
    const words = not.map((word) => `${word}: ${word === "resources" ? "unlimited" : "open"}`).join(", ");
    const coloured = `\x1b[33m${words}\x1b[39m`;
    for (const args of [
      ["ps", "-o", "wide", "--user", user],
      ["describe", id],
      ["logs", id],
    ])
      expect(await fleet.ok(args, { env: { CLICOLOR_FORCE: "1" } }), args.join(" ")).toContain(coloured);
    expect(readFileSync(log, "utf8")).toContain(`in the sandbox ${mode}; ${words}).`);
  },
);

it.each(SEEN.flatMap(({ mode }) => ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"].map((variable) => ({ mode, variable }))))(
  "a server in the sandbox $mode trusts the model service's certificate authority, which $variable names",
  async ({ mode, variable }) => {
    const folder = mkdtempSync(join(tmpdir(), "copilotfleet-authority-"));
    onTestFinished(() => removeFolder(folder));
    const authority = new TestAuthority();
    const file = join(folder, "ca.pem");
    writeFileSync(file, authority.cert);
    await using model = await startWireModel(null, authority.issue());
    const env = {
      COPILOTFLEET_SANDBOX_MODE: mode,
      // Without a key, the server itself sends the requests.
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: `${model.origin}/v1`,
      [variable]: file,
    };
    const user = `tls-${mode}-${variable === "SSL_CERT_FILE" ? "ssl" : "node"}`;
    const { id } = await fleet.create(user, user, { env });
    expect(await fleet.send(user, id, "ping", { env })).toBe("pong");
    expect((await fleet.server(user)).sandbox.mode).toBe(mode);
  },
);

it.skipIf(!isSandboxed)(
  "spawn refuses a server's recorded --cwd if it is now a link that leads out of the folder in sandbox.binds",
  async () => {
    const work = join(fleet.folder, "work of linked");
    mkdirSync(join(work, "inside"), { recursive: true });
    const env = { COPILOTFLEET_SANDBOX_BINDS: join(fleet.folder, "work of {user}") };
    const project = join(work, "project");
    rmSync(project, { force: true });
    symlinkSync(join(work, "inside"), project);
    await fleet.ok(["spawn", "--user", "linked", "--cwd", project], { env });
    await fleet.ok(["stop", "--user", "linked"]);
    rmSync(project);
    symlinkSync("/srv", project);
    expect(await fleet.refusal(3, ["spawn", "--user", "linked"], { env })).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining(`--cwd: "${project}" leads out of "${work}" by a link`),
    });
  },
);

it.skipIf(!isSandboxed)("after a restart with another sandbox.mode, the server has the new sandbox", async () => {
  const { sandbox } = await fleet.spawn("changed");
  expect(sandbox.mode).not.toBe("none");
  await fleet.ok(["restart", "--user", "changed"], { env: { COPILOTFLEET_SANDBOX_MODE: "none" } });
  expect((await fleet.server("changed")).sandbox.mode).toBe("none");
  await fleet.ok(["restart", "--user", "changed"]);
  expect((await fleet.server("changed")).sandbox).toEqual(sandbox);
  const { id } = await fleet.server("changed");
  await fleet.ok(["restart", id, "--rolling"], { env: { COPILOTFLEET_SANDBOX_MODE: "none" } });
  expect((await fleet.server("changed")).sandbox.mode).toBe("none");
});

const EXPOSING: [string, () => string][] = [
  ["the state folder", () => fleet.root],
  ["a folder above the state folder", () => fleet.folder],
  ["another user's home", () => join(fleet.root, "servers")],
  [
    "the account's home, although it has no configuration so far",
    () => {
      const home = fleet.env.HOME ?? "";
      mkdirSync(home, { recursive: true });
      return home;
    },
  ],
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

it.skipIf(!isSandboxed).each(EXPOSING)(
  "spawn refuses %s as --cwd and as a folder in sandbox.binds",
  async (_, folderOf) => {
    const folder = folderOf();
    const cwd = await fleet.refusal(3, ["spawn", "--user", "refused", "--cwd", folder]);
    expect(cwd).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining(`--cwd: "${folder}" would give a server access to "${fleet.folder}`),
    });
    const env = { COPILOTFLEET_SANDBOX_BINDS: folder };
    const bind = await fleet.refusal(3, ["spawn", "--user", "refused"], { env });
    expect(bind).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining(`sandbox.binds: "${folder}" would give`),
    });
    expect((await fleet.ps()).filter(({ user }) => user === "refused")).toEqual([]);
  },
);

it.skipIf(!isSandboxed).each(["/etc", "/usr/local", CODE])(
  "spawn refuses %s as --cwd, because a server could change programs there that run outside its sandbox",
  async (folder) => {
    expect(await fleet.refusal(3, ["spawn", "--user", "refused", "--cwd", folder])).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining(`--cwd: "${folder}" would let a server change`),
    });
  },
);

it("without a sandbox, spawn accepts any folder as --cwd, because a refusal would protect nothing", async () => {
  const env = { COPILOTFLEET_SANDBOX_MODE: "none" };
  await fleet.ok(["spawn", "--user", "freer", "--cwd", fleet.folder], { env });
});
