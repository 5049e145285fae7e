import { fileURLToPath } from "node:url";
import { Config } from "@oclif/core";
import { beforeAll, describe, expect, it } from "vitest";
import { placeAt, splitLine } from "../../src/cli/completion.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

describe("splitLine", () => {
  it.each([
    ["a", ["a"]],
    ["a ", ["a", ""]],
    ["  a  b", ["a", "b"]],
    ['a "b c" d', ["a", "b c", "d"]],
    ['a "b c', ["a", "b c"]],
    ["a 'b\\' c", ["a", "b\\", "c"]],
    ["a b\\ c", ["a", "b c"]],
    ["a ''", ["a", ""]],
    ["a --user=al", ["a", "--user=al"]],
    ["a $(b) `c`", ["a", "$(b)", "`c`"]],
    ["a b\\", ["a", "b"]],
  ])("splitLine splits %j as a shell does, and expands nothing", (line, words) => {
    expect(splitLine(line)).toEqual(words);
  });
});

describe("placeAt", () => {
  let config: Config;
  beforeAll(async () => {
    config = await Config.load({ root: ROOT });
  });

  it.each([
    ["stop", { ids: ["server"] }],
    ["stop a b", { ids: ["server"] }],
    ["send", { ids: ["session"] }],
    ["rm a", { ids: ["session"] }],
    ["inspect", { ids: ["server", "session", "user"] }],
    ["token revoke", { ids: ["token"] }],
    ["token rotate", { ids: ["token"] }],
    ["token issue --session", { ids: ["session"] }],
    ["ps --user", { ids: ["user"] }],
    ["list -u", { ids: ["user"] }],
    ["ps --host", { ids: ["host"] }],
    ["create --model", { ids: ["model"] }],
    ["create --member a --member", { ids: ["user"] }],
    ["send --user alice", { ids: ["session"], user: "alice" }],
    ["send --user=alice -u bob", { ids: ["session"], user: "bob" }],
    ["send --config f", { ids: ["session"], configFile: "f" }],
    ["lock --user", { ids: ["user"] }],
    ["logs -n 5", { ids: ["server"] }],
    ["logs -n5 -f", { ids: ["server"] }],
    ["ps --config", { files: true }],
    ["spawn --cwd", { files: true }],
    ["trust", { files: true }],
    ["lock s --user a --", { files: true, user: "a" }],
    // The fleet has no candidates for a new id, a free text, or the secret of a lease.
    ["create --id", {}],
    ["create --purpose", {}],
    ["unlock s --token", {}],
    ["send s", {}],
    ["send s --", {}],
    ["deploy systemd --run-as", {}],
    ["nonsense", {}],
  ])("placeAt returns what the command accepts after %j", (line, expected) => {
    const { fixed, ids, files, prefix, user, configFile } = placeAt([...line.split(" "), ""], config);
    expect(fixed).toEqual([]);
    expect({ ids, files, prefix, user, configFile }).toEqual({
      ...{ ids: [], files: false, prefix: "", user: undefined, configFile: undefined },
      ...expected,
    });
  });
});
