import { describe, expect, it } from "vitest";
import { inspectConfig } from "../../src/config/load/inspect.js";
import type { PartialConfig } from "../../src/config/load/load.js";
import { Folder } from "./folder.js";

const GOOD = { issuer: "https://login.example", audience: "copilotfleet" };

describe("identity.jwt", () => {
  it("an issuer in identity.jwt has defaults for all keys except issuer and audience", async () => {
    await using folder = new Folder();
    folder.write(folder.userFile, { identity: { jwt: [GOOD] } });
    expect(folder.load().config.identity.jwt).toEqual([
      {
        ...GOOD,
        jwks: null,
        algorithms: ["RS256", "ES256", "EdDSA"],
        user: "sub",
        groups: "groups",
        scopes: "scope",
        claims: {},
        clockSkewMs: 30_000,
      },
    ]);
  });

  it.each<[string, unknown, string]>([
    ["identity.jwt[0].issuer", { audience: "a" }, "is missing"],
    ["identity.jwt[0].audience", { issuer: GOOD.issuer }, "is missing"],
    ["identity.jwt[0].issuer", { ...GOOD, issuer: "http://login.example" }, "an https:// URL"],
    ["identity.jwt[0].issuer", { ...GOOD, issuer: "https://me:secret@login.example" }, "an https:// URL"],
    ["identity.jwt[0].jwks", { ...GOOD, jwks: "http://10.0.0.1/keys" }, "or the absolute path of a file"],
    ["identity.jwt[0].jwks", { ...GOOD, jwks: "keys.json" }, "or the absolute path of a file"],
    ["identity.jwt[0].algorithms[1]", { ...GOOD, algorithms: ["RS256", "HS256"] }, "a list with one or more of RS256"],
    ["identity.jwt[0].algorithms[0]", { ...GOOD, algorithms: ["none"] }, "a list with one or more of RS256"],
    ["identity.jwt[0].algorithms", { ...GOOD, algorithms: [] }, "a list with one or more of RS256"],
    ["identity.jwt[0].user", { ...GOOD, user: "" }, "the name of a claim"],
    ["identity.jwt[0].claims.org", { ...GOOD, claims: { org: 5 } }, "an object with the names of claims"],
    ["identity.jwt[0].clockSkew", { ...GOOD, clockSkew: "6m" }, "a duration"],
    ["identity.jwt[0]", "https://login.example", "an object with the keys issuer"],
  ])("a wrong value in identity.jwt is refused, and the error names %s", async (name, item, allowed) => {
    await using folder = new Folder();
    folder.write(folder.userFile, { identity: { jwt: [item] } });
    const { code, message } = folder.refusal();
    expect(code).toBe("FLEET_CONFIG_INVALID");
    expect(message).toContain(`${name} in ${folder.userFile}, line 1`);
    expect(message).toContain(allowed);
    const view = inspectConfig({
      cwd: folder.cwd,
      home: folder.home,
      env: { XDG_CONFIG_HOME: `${folder.home}/config` },
    });
    expect(view.wrong).toEqual(["identity.jwt"]);
    expect(message).not.toContain("secret@");
  });

  it("identity.jwt must be a list with known keys only and at most one entry for each issuer", async () => {
    await using folder = new Folder();
    const refusal = (jwt: unknown) => {
      folder.write(folder.userFile, { identity: { jwt } });
      return folder.refusal();
    };
    const unknown = refusal([GOOD, { ...GOOD, isuer: "x" }]);
    expect(unknown.code).toBe("FLEET_CONFIG_INVALID");
    expect(unknown.message).toContain('"identity.jwt[1].isuer" is not a key of the configuration');
    expect(refusal([GOOD, { ...GOOD, audience: "other" }]).message).toContain("each with another issuer");
    expect(refusal(GOOD).message).toContain("identity.jwt in");
  });

  it("an issuer in identity.jwt may use http:// for addresses of this machine", async () => {
    await using folder = new Folder();
    const local = { ...GOOD, issuer: "http://127.0.0.1:8080/realm", jwks: "http://[::1]:8080/keys" };
    const flags: PartialConfig = { identity: { jwt: [local] } };
    expect(folder.load({ flags }).config.identity.jwt[0]).toMatchObject(local);
  });

  it("the variable for identity.jwt is read as JSON", async () => {
    await using folder = new Folder();
    const load = (text: string) => ({ env: { COPILOTFLEET_IDENTITY_JWT: text } });
    expect(folder.load(load(JSON.stringify([GOOD]))).config.identity.jwt).toHaveLength(1);
    expect(folder.refusal(load("login.example")).message).toContain("COPILOTFLEET_IDENTITY_JWT");
    const wrong = folder.refusal(load('[{"issuer": "x", "audience": "a"}]'));
    expect(wrong.message).toContain("COPILOTFLEET_IDENTITY_JWT (identity.jwt[0].issuer)");
    expect(wrong.suggestions).toEqual([
      'Correct or unset COPILOTFLEET_IDENTITY_JWT, for example COPILOTFLEET_IDENTITY_JWT=[{"issuer":"https://login.example","audience":"copilotfleet"}].',
    ]);
  });

  it("identity.github.api is refused together with auth.githubToken, and with an http:// URL", async () => {
    await using folder = new Folder();
    const identity = { github: { api: "https://api.github.com" } };
    const refusal = folder.refusal({ flags: { identity, auth: { githubToken: { env: "GH_TOKEN" } } } });
    expect(refusal.message).toContain("identity.github.api and auth.githubToken are both set");
    expect(folder.refusal({ flags: { identity: { github: { api: "http://github.example" } } } }).message).toContain(
      "an https:// URL",
    );
  });

  it("a project file may set identity.jwt only if the user trusts the file", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, { identity: { jwt: [GOOD] } });
    expect(folder.refusal().message).toContain("identity.jwt");
  });
});
