import { corruptError } from "./link/failures.js";
import { type Documents, parseObject } from "./records/documents.js";

const KEY = /^[0-9a-f]{64}$/;

/** As `Store.pseudonymKey`. */
export async function pseudonymKey(documents: Documents, offered: string): Promise<string> {
  const name = documents.keys.pseudonymKey;
  for (;;) {
    const [stored = null] = await documents.read([name]);
    if (stored !== null) {
      const { key } = parseObject<{ key?: unknown }>(name, stored.data);
      if (typeof key === "string" && KEY.test(key)) return key;
      throw corruptError(name, "it does not contain a key of 64 hexadecimal digits");
    }
    if (await documents.commit(name, null, JSON.stringify({ key: offered }), {})) return offered;
  }
}
