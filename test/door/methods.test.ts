import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { handlingOf, isKnownMethod, knownMethods, whyRefused } from "../../src/door/policy/methods.js";
import { INSTALLED_SDK, methodsByVersion, methodsSentBy } from "../fixtures/sessions/sdk-methods.js";

describe("the table of methods", () => {
  const versions = methodsByVersion();

  it("the table of methods is compared with the SDKs from 1.0.5 to 1.0.15-preview.4", () => {
    expect([...versions.keys()].at(0)).toBe("1.0.5");
    expect([...versions.keys()].at(-1)).toBe("1.0.15-preview.4");
    for (const methods of versions.values()) expect(methods.size).toBeGreaterThan(250);
  });

  it.each([...versions, ["that is installed", methodsSentBy(INSTALLED_SDK)] as const])(
    "the table of methods has every method that the SDK %s sends",
    (_, methods) => expect([...methods].filter((method) => !isKnownMethod(method))).toEqual([]),
  );

  it("the table of methods has only methods that at least one of the SDKs sends", () => {
    const sent = new Set([...versions.values(), methodsSentBy(INSTALLED_SDK)].flatMap((methods) => [...methods]));
    expect(knownMethods().filter((method) => !sent.has(method))).toEqual([]);
  });

  it("refuses every client exactly the methods that docs/front-door.md lists as refused", () => {
    const page = readFileSync(new URL("../../docs/front-door.md", import.meta.url), "utf8");
    const section = page.slice(page.indexOf("\n## Refused methods\n"));
    const listed = [...section.matchAll(/^- `([^`]+)`$/gm)];
    const refused = knownMethods().filter((method) => method !== "connect" && handlingOf(method).handler === "refuse");
    expect(refused.length).toBeGreaterThan(50);
    expect(listed.map(([, method]) => method).sort()).toEqual(refused.sort());
  });

  it("names the SDK's option sessionFs when it refuses the method sessionFs.setProvider", () => {
    expect(whyRefused("sessionFs.setProvider")).toContain(`the SDK's option "sessionFs"`);
  });

  it.each(["runtime.shutdown", "sessionFs.setProvider", "session.provider.getEndpoint", "sessions.open"])(
    "never passes the known method %s to a server",
    (method) => expect(handlingOf(method).handler).toBe("refuse"),
  );

  it.each(["session.brandNew", "Session.Send", "session.send ", "", "__proto__", "constructor"])(
    "never passes the unknown method %j to a server",
    (method) => expect(handlingOf(method).handler).toBe("refuse"),
  );

  it("allows methods that reach files and programs only where session.host allows them", () => {
    const reaching =
      /^session\.(shell|workspaces|extensions\.(?!list)|factory|lsp|permissions\.(paths\.add|folderTrust))/;
    for (const method of knownMethods().filter((name) => reaching.test(name))) {
      const { host, handler } = handlingOf(method);
      expect(host === true || handler === "refuse", method).toBe(true);
    }
  });

  it("marks every method that can approve tools as approving, so that session.approve limits it", () => {
    const approving = /^session\.permissions\.(set|configure|modifyRules|paths\.add|folderTrust\.add|urls)/;
    const found = knownMethods().filter((name) => approving.test(name));
    expect(found.length).toBeGreaterThan(7);
    expect(found.filter((method) => handlingOf(method).approves !== true)).toEqual([]);
  });
});
