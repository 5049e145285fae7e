import { execFileSync } from "node:child_process";
import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import { runSecretCommand, TOKEN } from "../../src/config/secret.js";
import { type PlainSource, resolveToken, tokenSourceFromConfig } from "../../src/providers/github-token.js";
import { refusalOf } from "../config/folder.js";
import { processesWith, signalAll } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";

const NONE = { githubToken: null, githubApp: null };
const env = { PATH: process.env.PATH };
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "fleet-token-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function refusal(
  source: PlainSource,
  context: { user?: string | null; env?: Record<string, string> } = {},
): Promise<FleetError> {
  const error: unknown = await resolveToken(source, { user: "ann", env, ...context }).then(
    () => new Error("nothing was refused"),
    (reason: unknown) => reason,
  );
  if (!(error instanceof FleetError)) throw error;
  return error;
}

async function file(content: string, mode = 0o600): Promise<string> {
  const path = join(folder, `token-${Math.random()}`);
  await writeFile(path, content);
  await chmod(path, mode);
  return path;
}

describe("tokenSourceFromConfig", () => {
  it("tokenSourceFromConfig fills the user's id into the name of a variable, the path of a file, or a command", () => {
    expect(tokenSourceFromConfig(NONE, "ann")).toBeNull();
    expect(tokenSourceFromConfig({ ...NONE, githubToken: { from: "env", name: "GH_{user}" } }, "ann")).toEqual({
      from: "env",
      name: "GH_ann",
    });
    expect(
      tokenSourceFromConfig({ ...NONE, githubToken: { from: "file", path: "/t/{user}/{user}" } }, "ann@x"),
    ).toEqual({
      from: "file",
      path: "/t/ann@x/ann@x",
    });
    expect(
      tokenSourceFromConfig({ ...NONE, githubToken: { from: "command", command: "pass gh/{user}" } }, "zoë+1"),
    ).toEqual({
      from: "command",
      command: "pass gh/zoë+1",
    });
    expect(tokenSourceFromConfig({ ...NONE, githubToken: { from: "env", name: "GH" } }, null)).toEqual({
      from: "env",
      name: "GH",
    });
  });

  it("tokenSourceFromConfig refuses a user id that cannot be part of the name of a variable", () => {
    const error = refusalOf(() =>
      tokenSourceFromConfig({ ...NONE, githubToken: { from: "env", name: "GH_{user}" } }, "ann@x"),
    );
    expect(error).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE", exit: 3 });
    expect(error.message).toContain('"GH_ann@x" cannot be an environment variable. Allowed: letters');
  });

  it("tokenSourceFromConfig refuses a source with {user} for a shared server, which has no user", () => {
    const error = refusalOf(() =>
      tokenSourceFromConfig({ ...NONE, githubToken: { from: "command", command: "pass {user}" } }, null),
    );
    expect(error.message).toContain('no user to fill into "pass {user}"');
  });

  it.each(["$(id)", "a;b", "a b", "`id`", "../../etc", "-x", "a/b", "a'b", "", "a\nb", "$&"])(
    "tokenSourceFromConfig refuses the user id %j, which is not safe in a shell or a path",
    (user) => {
      const error = refusalOf(() =>
        tokenSourceFromConfig({ ...NONE, githubToken: { from: "command", command: "pass {user}" } }, user),
      );
      expect(error).toMatchObject({ code: "FLEET_USAGE_INVALID" });
    },
  );
});

describe("a token from a variable or a file", () => {
  it("a GitHub token is read from a variable or a file without the line break at its end", async () => {
    expect(await resolveToken({ from: "env", name: "GH" }, { user: null, env: { GH: "gho_1" } })).toBe("gho_1");
    expect(await resolveToken({ from: "file", path: await file("gho_2\n") }, { user: null, env })).toBe("gho_2");
  });

  it.each([
    ["empty", "", "is empty"],
    ["a line break alone", "\n", "is empty"],
    ["with a blank inside", "gho_can ary", "contains spaces"],
    ["with a blank before", " gho_canary", "contains spaces"],
    ["of two lines", "gho_canary\ngho_canary\n", "contains spaces"],
    ["with a control character", "gho_canary\u0007", "contains spaces"],
    ["longer than 4096 characters", "canary".repeat(700), "has 4200 characters. Allowed: at most 4096"],
  ])("resolveToken refuses a GitHub token (%s), and its error does not show the token", async (_, token, fault) => {
    for (const source of [
      { from: "env", name: "GH" },
      { from: "file", path: await file(token) },
    ] as const) {
      const error = await refusal(source, { env: { GH: token } });
      expect(error).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE", exit: 3 });
      expect(error.message).toContain(fault);
      expect(error.message).toContain(source.from === "env" ? "GH" : source.path);
      expect(JSON.stringify([error.message, error.suggestions, error.stack])).not.toMatch(/canary|can ary/);
    }
  });

  it("the error for a missing token variable names the variable", async () => {
    const error = await refusal({ from: "env", name: "GH_NONE" });
    expect(error).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE", exit: 3 });
    expect(error.message).toBe("The environment variable GH_NONE is not set.");
  });

  it("the error for a missing token file names the file", async () => {
    const path = join(folder, "none");
    const error = await refusal({ from: "file", path });
    expect(error).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE", exit: 3 });
    expect(error.message).toContain(`${path} does not exist.`);
  });

  it.each(["640", "604", "644", "660", "620"])("a token file of mode 0%s is refused", async (mode) => {
    const path = await file("gho_canary", Number.parseInt(mode, 8));
    const error = await refusal({ from: "file", path });
    expect(error).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE", exit: 3, suggestions: [`chmod 600 ${path}`] });
    expect(error.message).toContain(`has mode ${mode}`);
  });

  it("a token file that is a folder, a pipe or very large is refused at once", async () => {
    const pipe = join(folder, unused("pipe"));
    execFileSync("sh", ["-c", 'mkfifo -m 600 "$1"', "sh", pipe]);
    const sub = join(folder, unused("sub"));
    await mkdir(sub, { mode: 0o700 });
    for (const path of [pipe, sub, await file("x".repeat(70_000))]) {
      expect((await refusal({ from: "file", path })).message).toContain(
        "Allowed: a regular file of at most 65536 bytes",
      );
    }
  });
});

describe("a token from a command", () => {
  const run = (command: string, user: string | null = "ann") =>
    resolveToken({ from: "command", command }, { user, env });

  it("the token from a command is the first line that the command prints", async () => {
    expect(await run("echo gho_1; echo more")).toBe("gho_1");
    expect(await run('echo "gho_{user}_$COPILOTFLEET_USER"')).toBe("gho_ann_ann");
    expect(await run('cat; echo "[$COPILOTFLEET_USER]"', null)).toBe("[]");
  });

  it("the error for a failed token command quotes its stderr, but hides text that looks like a token", async () => {
    const error = await refusal({
      from: "command",
      command: "echo gho_canary; echo 'no ghp_canary123 here\n\u001b[31mred' >&2; exit 3",
    });
    expect(error).toMatchObject({ code: "FLEET_TOKEN_UNAVAILABLE", exit: 3 });
    expect(error.message).toContain("failed with exit code 3: no *** here [31mred");
    expect(JSON.stringify([error.message, error.stack, String(error.cause)])).not.toContain("canary");
  });

  it.each([
    ["that is not there", "no-such-command-at-all", "exit code 127"],
    ["that prints nothing", "true", "is empty"],
    ["that prints without end", "yes gho_canary", "printed too much"],
    ["that is killed", "kill -9 $$", "was ended by SIGKILL"],
  ])("a token from a command %s is refused", async (_, command, fault) => {
    expect((await refusal({ from: "command", command })).message).toContain(fault);
  });

  it.runIf(process.platform === "linux")("a token command ends at its deadline and leaves no process", async () => {
    const user = unused("sleeper");
    const command = "sleep 300 & wait";
    const error: unknown = await runSecretCommand(command, TOKEN, { user, env }, 300).catch(
      (reason: unknown) => reason,
    );
    expect(error).toMatchObject({
      code: "FLEET_TOKEN_UNAVAILABLE",
      message: expect.stringContaining("has not finished after 0.3 s"),
    });
    await expect.poll(() => processesWith(`COPILOTFLEET_USER=${user}`)).toEqual([]);
  });

  it.runIf(process.platform === "linux")(
    "a token command ends at its deadline even if its child left the process group and keeps the output open",
    async () => {
      const user = unused("setsid");
      const children = () => processesWith(`COPILOTFLEET_USER=${user}`);
      onTestFinished(() => signalAll(children(), "SIGKILL"));
      const error: unknown = await runSecretCommand("setsid sleep 300 &", TOKEN, { user, env }, 1_000).catch(
        (reason: unknown) => reason,
      );
      expect(error).toMatchObject({ message: expect.stringContaining("has not finished after 1 s") });
      expect(children()).toHaveLength(1);
    },
  );
});
