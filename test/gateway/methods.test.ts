import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { isKnownMethod, knownMethods, scopeOf } from "../../src/gateway/methods.js";

const SDK = fileURLToPath(new URL("../../node_modules/@github/copilot-sdk/dist/", import.meta.url));

/** Every method that the SDK's code can send to a server. */
function methodsOfSdk(): string[] {
  const found = ["generated/rpc.js", "client.js", "session.js", "extension.js", "copilotRequestHandler.js"].flatMap(
    (file) =>
      [...readFileSync(`${SDK}${file}`, "utf8").matchAll(/sendRequest\(\s*"([^"]+)"/g)].map(([, name = ""]) => name),
  );
  return [...new Set(found)].sort();
}

describe("the table of methods", () => {
  it("has every method that the SDK sends", () => {
    expect(methodsOfSdk().length).toBeGreaterThan(350);
    expect(methodsOfSdk().filter((method) => !isKnownMethod(method))).toEqual([]);
  });

  it("has none that the SDK does not send", () => {
    const sent = new Set(methodsOfSdk());
    expect(knownMethods().filter((method) => !sent.has(method))).toEqual([]);
  });

  it.each(["runtime.shutdown", "llmInference.setProvider", "session.provider.getEndpoint", "sessions.bulkDelete"])(
    "never passes %s on",
    (method) => expect(scopeOf(method)).toBe("never"),
  );

  it.each(["session.brandNew", "Session.Send", "session.send ", "", "__proto__", "constructor"])(
    "never passes %j on, which it does not know",
    (method) => expect(scopeOf(method)).toBe("never"),
  );

  it("lets what reaches past a conversation happen on a user's own server only", () => {
    for (const method of knownMethods()) {
      if (
        /^session\.(shell|workspaces|extensions\.(?!list)|factory|lsp|permissions\.(paths|folderTrust|setApproveAll))/.test(
          method,
        )
      ) {
        expect(["host", "never"], method).toContain(scopeOf(method));
      }
    }
  });
});
