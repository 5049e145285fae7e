import { randomBytes } from "node:crypto";
import { chownSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import type { SandboxMode } from "../../src/base/sandbox.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import type { ServerView } from "../../src/servers/server.js";
import { eventually } from "../fixtures/eventually.js";
import { serve } from "../fixtures/fleets/serve.js";
import { fleetAs } from "../fixtures/fleets/user-fleet.js";
import { startToolModel } from "../fixtures/models/tool-model.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";

/**
 * A program with which alice's agent searches for secrets. It prints each secret that it finds, with the kind of place:
 * its own environment; the environment, command line or memory of another process; or a file. It gets the secrets
 * spelled backwards, so that it does not find them in its own input.
 */
const SEARCH = `
use File::Find;
%secrets = map { ($name, $text) = split; ($name => scalar reverse $text) } split /\\n/, <<'SECRETS';
@SECRETS@
SECRETS
sub look { my ($where, $text) = @_; index($text, $secrets{$_}) >= 0 and $found{"$_ $where"} = 1 for keys %secrets }
sub text { my ($path) = @_; open(my $file, "<", $path) or return ""; local $/; return <$file> }
look("own environment", join "\\n", %ENV);
@pids = grep { $_ != $$ } split(" ", $ENV{pids}) ? split(" ", $ENV{pids}) : map { /(\\d+)/ } glob "/proc/[0-9]*";
for $pid (@pids) {
  look("environment", text("/proc/$pid/environ"));
  look("command line", text("/proc/$pid/cmdline"));
  open(MEMORY, "<:raw", "/proc/$pid/mem") or next;
  for (split /\\n/, text("/proc/$pid/maps")) {
    /^([0-9a-f]+)-([0-9a-f]+) rw/ or next;
    for ($at = hex $1; $at < hex $2; $at += 1 << 20) {
      sysseek(MEMORY, $at, 0) && sysread(MEMORY, $piece, (1 << 20) + 256) or last;
      look("memory", $piece);
    }
  }
}
find({ no_chdir => 1, wanted => sub { -f && -r _ && -s _ < 64 << 20 and look("file", text($_)) } }, grep { -d } @ARGV);
print "$_\\n" for sort keys %found;
print "over\\n";
`;

const canary = (kind: string) => `${kind}_canary${randomBytes(16).toString("hex")}`;

/** The files below a folder that contain one of the texts. */
function filesWith(folder: string, texts: readonly string[]): string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => statSync(join(folder, name), { throwIfNoEntry: false })?.isFile() === true)
    .filter((name) => texts.some((text) => readFileSync(join(folder, name)).includes(text)))
    .sort();
}

interface Case {
  mode: SandboxMode;
  as: "root" | "an ordinary user";
}

const ROOT = process.getuid?.() === 0;
const CASES: Case[] = [
  { mode: "landlock", as: "an ordinary user" },
  ...(bwrapProblem === undefined
    ? (["root", "an ordinary user"] as const).map((as) => ({ mode: "bwrap", as }) as const)
    : []),
  { mode: "none", as: "root" },
];

/** Where the search finds the secrets of alice's own server. A known file in its home shows that the search works. */
const OWN = ["alice's-connection-token memory", "alice's-github-token memory", "known file"];

it.skipIf(!ROOT).each(CASES)(
  "in sandbox mode $mode as $as, an agent finds only its own server's two secrets (in mode none, every secret)",
  async ({ mode, as }) => {
    await using model = await startToolModel();
    const key = canary("sk");
    const env: NodeJS.ProcessEnv = {
      ...model.env,
      COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
      MODEL_KEY: key,
      COPILOTFLEET_SANDBOX_MODE: mode,
      // No server listens at this address. Without the setting, a runtime with a token would connect to GitHub.
      COPILOT_API_URL: "http://127.0.0.1:9",
      COPILOT_DEBUG_GITHUB_API_URL: "http://127.0.0.1:9",
    };
    const { fleet, user, run } = await fleetAs(as, env);
    const tokens = join(fleet.folder, "tokens");
    fleet.env.COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE = join(tokens, "{user}");
    const github = { alice: `gho_${canary("alice")}`, bob: `gho_${canary("bob")}` };
    mkdirSync(tokens);
    const given = Object.entries(github).map(([name, token]) => [join(tokens, name), token] as const);
    for (const [path, token] of given) writeFileSync(path, token, { mode: 0o600 });
    if (user !== null) for (const path of [tokens, ...given.map(([path]) => path)]) chownSync(path, user.uid, user.uid);

    for (const name of ["alice", "bob"])
      await fleet.ok(["create", "--user", name, "--id", `of-${name}`, "--prompt", "hello"], run);
    const serving = await serve(fleet, run);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    const of = (name: string) => servers.find((server) => server.user === name);
    const connection = async (name: string) =>
      (await fleet.json<{ token: string }>(["connect", "--user", name], run)).token;
    const secrets: Record<string, string> = {
      "provider's-key": key,
      "alice's-github-token": github.alice,
      "bob's-github-token": github.bob,
      "alice's-connection-token": await connection("alice"),
      "bob's-connection-token": await connection("bob"),
      known: canary("known"),
    };

    const home = homeOf(fleet.root, serverIdOf("alice"));
    const backwards = Object.entries(secrets).map(([name, text]) => `${name} ${[...text].reverse().join("")}`);
    writeFileSync(join(home, "search.pl"), SEARCH.replace("@SECRETS@", backwards.join("\n")));
    writeFileSync(join(home, "known"), secrets.known ?? "");
    // Without a sandbox, the search would also find the secrets in this test's memory, so it gets the PIDs to search.
    const pids = mode === "none" ? [of("alice")?.pid, of("bob")?.pid, serving.pid].join(" ") : "";
    const search = `pids='${pids}' perl "$HOME/search.pl" "$HOME" "$TMPDIR" '${fleet.folder}' /dev/shm`;
    const command = `[ -e "$HOME/result" ] || { : > "$HOME/result"; ${search} > "$HOME/result" 2>&1; }`;
    const call = { command, description: "searches" };
    await fleet.ok(["send", "of-alice", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], run);
    const found = await eventually("the search is over", () => {
      const lines = readFileSync(join(home, "result"), "utf8").split("\n").filter(Boolean);
      return lines.at(-1) === "over" && lines.slice(0, -1);
    });
    if (mode === "none") {
      const names = new Set(found.map((line) => line.split(" ")[0]));
      expect([...names].sort()).toEqual(Object.keys(secrets).sort());
      return;
    }
    expect(found).toEqual(OWN);
    // A server's folder also contains its log, which has the server's output.
    const filesOf = (name: string) => filesWith(dirname(of(name)?.home ?? ""), Object.values(secrets));
    expect(filesOf("alice")).toEqual(["connection-token", "home/known"]);
    expect(filesOf("bob")).toEqual(["connection-token"]);
  },
);
