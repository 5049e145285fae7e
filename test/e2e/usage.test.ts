import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type ErrorShape, RAW, testFleet } from "../fixtures/commands/cli.js";

const fleet = testFleet();
const TOKEN = "ghp_0123456789abcdefghijABCDEFGHIJ012345";

// These tests run only commands that are refused, and such a command must not create the state folder.
afterAll(() => {
  expect(existsSync(fleet.root), "the state folder was made").toBe(false);
});

/** Runs a command with `--json` that must be refused. The test below compares this error with its form as text. */
async function refused(exit: number, args: readonly string[]): Promise<ErrorShape> {
  const error = await fleet.refusal(exit, args);
  expect([error.message, ...error.suggestions].join("\n")).not.toMatch(RAW);
  return error;
}

it.each([
  [["spwan"]],
  [["send"]],
  [["ps", "--\u001b[31m"]],
  [["stop", "--drain", "3s"]],
  [["stop", "a", "--all"]],
  [["list", "--user", "a", "--user", "b"]],
  [["list", "--state", "idel"]],
  [["spawn", "--user", "a\nb"]],
  [["spawn", "--user", "a", "--cwd", "/etc/hostname"]],
  [["spawn", "--user", "a", `--token=${TOKEN}`]],
  [["resume", "\u001b[31m", "--user", "a"]],
  [["send", "s", "t", "--user", "a", "--timeout", "30d"]],
  [["deploy", "systemd", "--output", " "]],
  [["store", "migrate", "--to", "redis://:canary@127.0.0.1"]],
])("the command line %j prints the same error as text and as JSON", async (args) => {
  const [text, error] = await Promise.all([fleet.run(args), refused(2, args)]);
  expect(text).toMatchObject({ code: 2, stdout: "" });
  const expected = [
    `Error: ${error.message.replace(/(?<=[^.?])$/, ".")} [${error.code}]`,
    ...error.suggestions.map((text) => `  ${/^copilotfleet /.test(text) ? "Try" : "Hint"}: ${text}`),
  ];
  expect(text.stderr.replaceAll(/Try \([^()]*\): /g, "Try: ")).toBe(`${expected.join("\n")}\n`);
  expect(text.stderr).not.toMatch(RAW);
});

describe("a command line with a mistake", () => {
  it.each([
    [["spwan"], 'There is no command "spwan".', "copilotfleet spawn"],
    [["lst", "--user", "a"], 'There is no command "lst".', "copilotfleet list"],
    [["ps", "--jsno"], 'There is no flag "--jsno".', "Did you mean --json?"],
    [["ps", "--hlep"], 'There is no flag "--hlep".', "Did you mean --help?"],
    [["spawn", "--usr", "a"], 'There is no flag "--usr".', "Did you mean --user?"],
    [["stop", "--drain", "3s"], 'There is no flag "--drain".', "Did you mean --drain-timeout?"],
    [["create", "--user=a", "--modle=x"], 'There is no flag "--modle".', "Did you mean --model?"],
    [["list", "--state", "idel"], '--state "idel" is not a state. Allowed: active, idle, draining or gone.', "--help"],
    [["spawn", "bob"], '"spawn" takes no arguments, but was given "bob".', 'Did you mean --user "bob"?'],
    [["ps", "x", "y"], '"ps" takes no arguments, but was given "x", "y".', "copilotfleet ps"],
    [["send", "s", "t", "u", "--user", "a"], 'Unexpected argument: "u".', "copilotfleet send --help"],
    [["resume"], "SESSION is missing.", "copilotfleet resume --help"],
    [["send"], "SESSION and TEXT are missing.", "copilotfleet send --help"],
    [["delete"], "SESSION is missing.", "copilotfleet delete --help"],
    [["create"], "--user is missing.", "copilotfleet create --help"],
    [["connect"], "--user is missing.", "copilotfleet connect --help"],
    [["store", "migrat"], 'There is no command "store migrat".', "copilotfleet store migrate"],
    [["stor"], expect.stringMatching(/^There is no command "stor"\./), "copilotfleet --help"],
    [["store", "migrate", "--too", "x"], 'There is no flag "--too".', "Did you mean --to?"],
    [
      ["store", "migrate", "x"],
      '"store migrate" takes no arguments, but was given "x".',
      "copilotfleet store migrate --to redis://HOST:6379/0",
    ],
    [
      ["list", "--user"],
      expect.stringMatching(/^--user needs a value\. Allowed: an id of letters/),
      "For example, write --user alice.",
    ],
    [
      ["list", "--user", "a", "--user", "b"],
      "--user was given more than once. Give it once.",
      "copilotfleet list --help",
    ],
  ])("the command line %j is refused with a suggestion of what was meant", async (args, message, suggestion) => {
    const error = await refused(2, args);
    expect(error).toMatchObject({ code: "FLEET_USAGE_INVALID", message });
    expect(error.suggestions).toContainEqual(expect.stringContaining(suggestion));
  });

  it.each([
    [["spawn"], /--user (?:or|and) --shared/],
    [["spawn", "--user", "a", "--shared"], /--user (?:or|and) --shared/],
    [["spawn", "--shared", "--count", "2"], /--shared and --count cannot be used together/],
    [["spawn", "--user", "a", "--token-env", "X", "--token-file", "y"], /cannot be used together/],
    [["stop"], /ids of servers, or --user USER, or --all/],
    [["stop", "--all", "--user", "a"], /ids of servers, or --user USER, or --all/],
    [["stop", "a", "--all"], /ids of servers, or --user USER, or --all/],
    [["restart", "a", "--user", "a"], /ids of servers, or --user USER, or --all/],
    [["send", "s", " ", "--user", "a"], /^The prompt is " ", which contains only spaces\. Give a text\.$/],
    [["create", "--user", "a", "--prompt", ""], /--prompt is "", which is empty/],
    [["resume", "s", "--user", "a", "--prompt", " "], /--prompt is " ", which contains only spaces/],
    [["deploy", "kubernetes", "--replicas", "3"], /^--replicas 3 needs a store in Redis, but the store is "file"/],
    [
      ["deploy", "kubernetes", "--replicas", "0"],
      /--replicas is "0", which is less than 1\. Allowed: a whole number from 1 to 100$/,
    ],
    [
      ["deploy", "kubernetes", "--namespace", "Chat_1"],
      /--namespace is "Chat_1", which contains "C"\. Allowed: the name of a namespace \(1 to 63 lower-case letters/,
    ],
    [["deploy", "kubernetes", "--name", "x".repeat(41)], /--name is "x{41}"\. Allowed: 1 to 40/],
    [
      ["deploy", "kubernetes", "--image", "a b"],
      /--image is "a b", which contains a space\. Allowed: the name of an image/,
    ],
    [
      ["deploy", "kubernetes", "--storage", "nfs"],
      /--storage "nfs" is not a kind of storage\. Allowed: local or shared\./,
    ],
    [["deploy", "kubernetes", "--storage-size", "10GB"], /--storage-size is "10GB"\. Allowed: a number with Mi, Gi/],
    [
      ["deploy", "kubernetes", "--egress-port", "65536"],
      /--egress-port is "65536", which is more than 65535\. Allowed: a port from 1/,
    ],
    [
      ["deploy", "compose", "--servers", "many"],
      /--servers is "many", which is not a number\. Allowed: a whole number/,
    ],
    [
      ["deploy", "systemd", "--command", "copilotfleet"],
      /--command is "copilotfleet"\. Allowed: a path that starts with/,
    ],
    [
      ["deploy", "systemd", "--run-as", "a b"],
      /--run-as is "a b", which contains a space\. Allowed: the name of a Linux account/,
    ],
    [
      ["deploy", "systemd", "--output", " "],
      /--output is " ", which contains only spaces\. Allowed: the path of a folder/,
    ],
    [["store", "migrate"], /--to/],
    [
      ["store", "migrate", "--to", "file"],
      /--to is "file", the store that the fleet uses now, .* Allowed: another store/,
    ],
    [
      ["store", "migrate", "--to", "http://127.0.0.1"],
      /--to is "http:\/\/127.0.0.1", which is neither "file" nor the URL of a Redis\. Allowed: "file", or/,
    ],
    [
      ["store", "migrate", "--to", "redis://:canary@127.0.0.1"],
      /"redis:\/\/\*\*\*@127.0.0.1", which contains a password\. Allowed: /,
    ],
    [["store", "migrate", "--to", "redis://10.0.0.1"], /Allowed: rediss:\/\/ \(TLS\)/],
    [["create", "--user", "a", "--model", ""], /--model is "", which is empty\. Allowed: the name of a model/],
    [
      ["create", "--user", "a", "--model", "gpt\u001b[31m"],
      /--model is "gpt\\u\{1b\}\[31m", which contains "\\u\{1b\}"\. Allowed: /,
    ],
  ])("the command line %j is refused, and the error states the reason", async (args, message) => {
    expect(await refused(2, args)).toMatchObject({
      code: "FLEET_USAGE_INVALID",
      message: expect.stringMatching(message),
    });
  });

  it.each([
    [["token:issue"], /^There is no command "token:issue"\.$/, "copilotfleet token issue"],
    [
      ["store", "x"],
      /^There is no command "store x"\. Allowed: store migrate or store sign\.$/,
      "copilotfleet store --help",
    ],
    [["token", "x"], / Allowed: token issue, token list, token revoke or token rotate\.$/, "copilotfleet token --help"],
    [
      ["token", "revoke", "--nonsense"],
      / Allowed: --user, --yes, .*--json or --help\.$/,
      "copilotfleet token revoke --help",
    ],
    [
      ["create", "--nonsense"],
      /^There is no flag "--nonsense"\. Allowed: --user, --id, .*, --json or --help\.$/,
      "copilotfleet create --help",
    ],
    [
      ["42"],
      /^There is no command "42"\. Allowed: a command such as create, send, ps or stop\.$/,
      "copilotfleet --help",
    ],
    [[""], /^The command "" is empty\. Allowed: a command such as /, "copilotfleet --help"],
    [["-x"], /^The command is missing before the flag "-x"\. Allowed: a command such as /, "copilotfleet --help"],
    [["lock", "s", "--user", "a", "--"], /^COMMAND is missing/, "copilotfleet lock s --user a -- COMMAND"],
    [["deploy", "kubernetes", "--replicas", "3"], /^--replicas 3 needs/, "--replicas 3 --redis-secret NAME"],
    [
      ["store", "migrate", "--to", "x y"],
      /which contains a space/,
      "For example, write --to redis://127.0.0.1:6379/0.",
    ],
    [
      ["spawn", "--shared", "--count", "2"],
      /because --count starts the servers of several users/,
      "copilotfleet spawn --shared",
    ],
    [
      ["lock", "s", "--user", "a", "--show", "--steal"],
      /because --show only shows the lease/,
      'copilotfleet lock s --user a --steal --reason "WHY"',
    ],
    [["token", "revoke"], /^ID or --user is missing/, "copilotfleet token revoke ID"],
    [["trust", "--list", "--revoke", "a b"], /cannot be used together/, "copilotfleet trust --revoke 'a b'"],
    [["explain", "FLEET_NOTHING"], / Allowed: the code of an error, such as /, "copilotfleet explain"],
    [["chat", "--to", "localhost"], /which has no port/, "For example, write --to localhost:4300."],
    [
      ["serve", "--http", "4381"],
      /^--http is "4381", which has no host\. /,
      "For example, write --http 127.0.0.1:4381.",
    ],
    [["serve", "--http", "99999"], /which has no host\. /, "For example, write --http 127.0.0.1:4380."],
    [
      ["serve", "--http", "127.0.0.1:4300"],
      /^serve\.listen and serve\.http both use port 4300 \(serve\.listen: the default; serve\.http: the flag --http\)\. /,
      "Change serve.listen or serve.http.",
    ],
    [["autocomplete", "tcsh"], /^SHELL is "tcsh"\. Allowed: bash, zsh or fish\.$/, "copilotfleet autocomplete bash"],
    [
      ["deploy", "kubernetes", "--ingress-class", "nginx"],
      /^--ingress-class needs --ingress-host\.$/,
      "copilotfleet deploy kubernetes --help",
    ],
    [["logs", "a", "--lines", "many"], /which is not a number/, "For example, write --lines 100."],
    [
      ["deploy", "kubernetes", "--secret"],
      /^--secret needs a value\. Allowed: the name of a Kubernetes Secret \(lower-case letters/,
      "For example, write --secret copilotfleet.",
    ],
    [
      ["spawn", "--user", "a", "--token-env", "NOT_SET"],
      /^The environment variable NOT_SET, which --token-env names, is not set/,
      "Set NOT_SET to the user's GitHub token, or give --token-env the name of another variable.",
    ],
    [
      ["unlock", "s", "--token-env", "NOT_SET"],
      /^The environment variable NOT_SET, which --token-env names, is not set/,
      "Set NOT_SET to the token that lock printed, or give --token-env the name of another variable.",
    ],
    [["spawn", "--user", "a", "--count", "2000"], /which is more than 1000\./, "For example, write --count 2."],
  ])(
    "the error for the command line %j lists what is allowed, if the list is short, and suggests a next step",
    async (args, message, advice) => {
      const end = args.indexOf("--");
      const ran = await fleet.run(
        end === -1 ? [...args, "--json"] : [...args.slice(0, end), "--json", ...args.slice(end)],
      );
      const { error } = ran.json<{ error: ErrorShape }>();
      expect(error.message).toMatch(message);
      expect(error.suggestions).toContainEqual(expect.stringContaining(advice));
    },
  );

  it("the error for a command line with control characters shows them escaped", async () => {
    for (const args of [
      ["\u001b[31mps"],
      ["ps", "--\u001b[31m"],
      ["ps", "\u202ex"],
      ["list", "--state", "\u200b\u001b"],
    ]) {
      const error = await refused(2, args);
      expect(error.message).toMatch(/\\u\{(1b|202e|200b)\}/);
    }
  });

  it.each(["__proto__", "constructor", "toString"])("%j is refused as an unknown command", async (name) => {
    const message = expect.stringMatching(`^There is no command "${name}"\\. Allowed: a command such as `);
    expect(await refused(2, [name])).toMatchObject({ message });
  });

  it("delete and stop read no arguments from standard input, which may be meant for another program", async () => {
    expect(await fleet.run(["delete"], { input: "s1\n" })).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("SESSION is missing"),
    });
    expect(await fleet.run(["stop", "--all"], { input: "alice\n" })).toMatchObject({ code: 0, stderr: "" });
  });

  it("send refuses a blank standard input as the prompt", async () => {
    const ran = await fleet.run(["send", "s", "-", "--user", "a"], { input: " \n" });
    expect(ran).toMatchObject({
      code: 2,
      stdout: "",
      stderr: expect.stringContaining("The prompt on standard input is"),
    });
  });
});

describe("a user id", () => {
  const BAD = [
    "",
    " ",
    "..",
    ".hidden",
    "../../etc",
    "a/b",
    "a\\b",
    "a b",
    "a\nb",
    "a\u001b[31mb",
    "-x",
    "a".repeat(129),
    "é".repeat(65),
    "a\u202eb",
    "a\u200bb",
    "\u0301a",
    "__proto__",
    "constructor",
    "prototype",
    "%2e%2e",
    "a*",
    "$(id)",
    "a:b",
  ];

  it.each(BAD)("spawn refuses the user id %j", async (user) => {
    const error = await refused(2, ["spawn", "--user", user]);
    expect(error).toMatchObject({
      code: "FLEET_USER_INVALID",
      message: expect.stringMatching(
        /^--user ".*" is not a user id: it (is|has|contains|starts|stands) .*\. Allowed: (an|another) id of letters/,
      ),
    });
  });

  it("every command with --user refuses an invalid user id before anything else", async () => {
    const commands = [
      ["connect"],
      ["create"],
      ["resume", "s"],
      ["send", "s", "t"],
      ["list"],
      ["delete", "s"],
      ["stop"],
      ["restart"],
      ["spawn", "--count", "2"],
    ];
    await Promise.all(
      commands.map(async (args) => {
        const error = await fleet.refusal(2, [...args, "--user", "a/b"]);
        expect(error, args.join(" ")).toMatchObject({
          code: "FLEET_USER_INVALID",
          message: expect.stringMatching(/^--user "a\/b" is not a user id/),
        });
      }),
    );
  });

  it("spawn --count refuses a user id that the numbers make too long, before it starts a server", async () => {
    const args = ["spawn", "--user", "a".repeat(127), "--count", "10"];
    expect(await refused(2, args)).toMatchObject({ code: "FLEET_USER_INVALID" });
  });
});

describe("a session id", () => {
  const BAD = [
    "",
    " ",
    ".",
    "..",
    "../s",
    "a/b",
    "a b",
    "a\nb",
    "\u001b[31m",
    "é",
    "a".repeat(129),
    "__proto__",
    "constructor",
  ];

  it.each(BAD)("create and resume refuse the session id %j", async (id) => {
    const [create, resume] = await Promise.all([
      refused(2, ["create", "--user", "a", "--id", id]),
      refused(2, ["resume", id, "--user", "a"]),
    ]);
    const allowed =
      /" is not a session id: it (is|has|contains|starts|stands) .*\. Allowed: (an|another) id of A-Z, a-z, 0-9/;
    for (const error of [create, resume]) {
      expect(error).toMatchObject({ code: "FLEET_SESSION_ID_INVALID", message: expect.stringMatching(allowed) });
    }
    expect(create.message).toMatch(/^--id "/);
    expect(resume.message).toMatch(/^SESSION "/);
  });

  it("send and delete refuse an invalid session id, even if it is the second of two ids", async () => {
    expect(await refused(2, ["send", "a/b", "x", "--user", "a"])).toMatchObject({ code: "FLEET_SESSION_ID_INVALID" });
    expect(await refused(2, ["delete", "fine", "a/b"])).toMatchObject({ code: "FLEET_SESSION_ID_INVALID" });
  });
});

describe("durations and counts", () => {
  const flags: [string, string[]][] = [
    ["--ttl", ["create", "--user", "a"]],
    ["--timeout", ["send", "s", "t", "--user", "a"]],
    ["--drain-timeout", ["stop", "--all"]],
    ["--wait", ["spawn", "--user", "a"]],
  ];

  it.each(flags)("the flag %s refuses everything but a number with a unit", async (flag, args) => {
    for (const value of ["0", "0s", "-5m", "10", "5 parsecs", "NaN", "Infinity", "1e3s", "", "5\u001bs", "99999d"]) {
      const error = await fleet.refusal(2, [...args, `${flag}=${value}`]);
      expect(error.code).toBe("FLEET_DURATION_INVALID");
      expect(error.message).toMatch(new RegExp(`^${flag} is ".*", (?:which|and) .*\\. Allowed: a number with a unit`));
      expect(error.message + error.suggestions.join("")).not.toMatch(RAW);
    }
  });

  it("send refuses a --timeout that is longer than a timer can wait", async () => {
    // Timers of more than 2^31 ms fire at once, so an earlier version gave up a turn with --timeout 30d after 1 ms.
    expect(await refused(2, ["send", "s", "t", "--user", "a", "--timeout", "30d"])).toMatchObject({
      message: expect.stringMatching(/^--timeout is "30d", which is longer than 24d\. .* at most 24d$/),
    });
  });

  it.each([
    ["--count", ["spawn", "--user", "a"], ["0", "-1", "1.5", "1e1", " 1", "0x1", "", "1001", "x"]],
    ["--lines", ["logs", "a"], ["-1", "1.5", "1e1", "x", "", "9999999"]],
  ])("the flag %s refuses everything but a whole number", async (flag, args, values) => {
    for (const value of values) {
      const error = await fleet.refusal(2, [...args, `${flag}=${value}`]);
      expect(error).toMatchObject({
        code: "FLEET_USAGE_INVALID",
        message: expect.stringMatching(
          new RegExp(`^${flag} is ".*", which is .*\\. Allowed: a whole number from \\d+ to \\d+$`),
        ),
      });
    }
  });
});

describe("a token on the command line", () => {
  it.each([
    [["spawn", "--user", "a", "--token", TOKEN]],
    [["spawn", "--user", "a", `--token=${TOKEN}`]],
    [["spawn", "--user", "a", "--token-env", TOKEN]],
    [["spawn", "--user", "a", "--token-file", TOKEN]],
    [["spawn", "--user", "a", TOKEN]],
    [[TOKEN]],
    [["list", "--state", TOKEN]],
  ])("the token in the command line %j is refused and never repeated", async (args) => {
    const error = await refused(2, args);
    expect(JSON.stringify(error)).not.toContain(TOKEN.slice(0, 12));
  });

  it.each([
    [["spawn", "--user", "a", "--token-env", "NOT_SET"], "FLEET_TOKEN_UNAVAILABLE"],
    [["unlock", "s", "--token-env", "NOT_SET"], "FLEET_TOKEN_UNAVAILABLE"],
  ])("the command line %j is refused with exit code 3, because the variable is not set", async (args, code) => {
    const message = expect.stringMatching(
      /^The environment variable NOT_SET, which --\S+ names, is not set or is empty/,
    );
    expect(await refused(3, args)).toMatchObject({ code, message });
  });

  it("the error for a token on the command line suggests using --token-env and revoking the token", async () => {
    const unknown = await refused(2, ["spawn", "--user", "a", `--token=${TOKEN}`]);
    expect(unknown.suggestions).toContain("Did you mean --token-env?");
    const asName = await refused(2, ["spawn", "--user", "a", "--token-env", TOKEN]);
    expect(asName.message).toMatch(/takes the name of a variable.*Revoke the token/);
    expect((await refused(2, ["spawn", "--user", "a", "--token-env", "not a name"])).message).toMatch(
      /name of a variable/,
    );
  });
});

it("token revoke refuses a whole token without repeating it, and suggests how to revoke it", async () => {
  const secret = "s".repeat(43);
  const error = await refused(2, ["token", "revoke", `cft_0123456789abcdef_${secret}`]);
  expect(error).toMatchObject({
    message: expect.stringMatching(/^This is a token and not its id\. Revoke it/),
    suggestions: ["copilotfleet token revoke 0123456789abcdef"],
  });
  expect(JSON.stringify(error)).not.toContain(secret);
});

describe("a working folder", () => {
  it("spawn refuses a --cwd that does not exist or is not a folder", async () => {
    for (const cwd of [join(fleet.folder, "nowhere"), "/etc/hostname", "", "\u001b[31m"]) {
      expect(await refused(2, ["spawn", "--user", "a", "--cwd", cwd])).toMatchObject({
        code: "FLEET_USAGE_INVALID",
        message: expect.stringMatching(/^--cwd ".*" (?:does not exist|is a file)/),
      });
    }
  });
});
