import { chmodSync, chownSync, mkdtempSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { expect, it, onTestFinished, vi } from "vitest";
import { run } from "../../src/sandbox/landlock.js";
import { machineProgram } from "../../src/sandbox/programs.js";
import { tryMechanisms } from "../../src/sandbox/sandbox.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const SHORTAGE = "bwrap: Creating new namespace failed: Resource temporarily unavailable";

/** Makes a program that fails with this message. @returns its folder */
function failing(name: string, message: string, at = tmpdir()): string {
  const folder = realpathSync(mkdtempSync(join(at, "copilotfleet-trials-")));
  onTestFinished(() => removeFolder(folder));
  writeFileSync(join(folder, name), `#!/bin/sh\necho '${message}' >&2\nexit 1\n`, { mode: 0o755 });
  return folder;
}

it.each([
  [SHORTAGE, true],
  ["sh: 1: Cannot fork", true],
  ["bash: warning: setlocale: cannot change locale\nbash: fork: Resource temporarily unavailable", true],
  ["bwrap: Creating new namespace failed: max_*_namespaces exceeded (ENOSPC)", true],
  ["copilotfleet-sandbox: cannot open /usr: error 24", true],
  ["bwrap: No permissions to create new namespace", false],
  ["copilotfleet-sandbox: Landlock refuses the rules: error 1", false],
])("run treats the failure “%s” as a shortage of resources: %s", async (message, isShortage) => {
  const trial = run(join(failing("program", message), "program"), []);
  if (isShortage)
    await expect(trial).rejects.toMatchObject({
      code: "FLEET_RUNTIME_UNUSABLE",
      message: expect.stringContaining(message.split("\n")[0] ?? ""),
    });
  else expect(await trial).toMatchObject({ failure: message });
});

it.each(["kill -KILL $$", "exit 2"])(
  "a trial that ends without a message, as “%s” does, throws instead of reporting that the sandbox fails",
  async (script) => {
    await expect(run("/bin/sh", ["-c", script])).rejects.toMatchObject({ code: "FLEET_RUNTIME_UNUSABLE" });
  },
);

it("machineProgram searches only the machine's own folders in PATH, because an agent may change others", () => {
  const folder = failing("stat", "the program of an agent");
  symlinkSync("/usr/bin", join(folder, "link"));
  onTestFinished(() => void vi.unstubAllEnvs());
  const found = (PATH: string) => {
    vi.stubEnv("PATH", PATH);
    return machineProgram("stat");
  };
  expect(found([folder, ".", "", "/usr/bin"].join(delimiter))).toBe("/usr/bin/stat");
  expect(found(join(folder, "link"))).toBe("/usr/bin/stat");
  expect(found([folder, ".", ""].join(delimiter))).toBeNull();
});

// Only root can put a program into a folder where the fleet looks for programs.
it.skipIf(process.getuid?.() !== 0)(
  "machineProgram refuses a program that this account owns and may not run, and passes over that of another account",
  () => {
    const folder = failing("bwrap", "", "/usr/local/lib");
    const program = join(folder, "bwrap");
    onTestFinished(() => void vi.unstubAllEnvs());
    vi.stubEnv("PATH", folder);
    chmodSync(program, 0o644);
    expect(() => machineProgram("bwrap")).toThrow(expect.objectContaining({ code: "FLEET_SANDBOX_UNUSABLE" }));
    chownSync(program, 4711, 4711);
    expect(machineProgram("bwrap")).toBeNull();
  },
);

it.skipIf(bwrapProblem !== undefined || process.getuid?.() !== 0)(
  "tryMechanisms rejects instead of choosing a weaker sandbox if no processes are left, and tries again later",
  async () => {
    const { PATH = "" } = process.env;
    onTestFinished(() => {
      vi.unstubAllEnvs();
      vi.restoreAllMocks();
    });
    // A trial in another test file may have left a valid result in this process, so let it expire.
    const now = performance.now();
    vi.spyOn(performance, "now").mockReturnValue(now + 61_000);
    vi.stubEnv("PATH", `${failing("bwrap", SHORTAGE, "/usr/local/lib")}${delimiter}${PATH}`);
    await expect(tryMechanisms("auto")).rejects.toMatchObject({ code: "FLEET_RUNTIME_UNUSABLE" });
    vi.stubEnv("PATH", PATH);
    expect((await tryMechanisms("auto")).at(-1)).toMatchObject({ mode: "bwrap", not: ["network", "resources"] });
  },
);
