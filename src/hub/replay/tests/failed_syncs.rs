//! A failed sync takes back from the log what the stream has been through already. Until it comes again, whoever catches up has
//! only met the end of the log, not of what there is for him.

use super::*;
use crate::log::testing::DiscardingFiles;

impl Past {
    /// The next sync fails, if there is anything to sync: the log goes back to what is durable.
    pub(super) async fn takes_back(&mut self, disk: &DiscardingFiles) {
        let log = self.bench.log.clone();
        let (mut reader, mut lost) = (log.reader(log.durable()), VecDeque::new());
        while let Some(read) = reader.try_next().await.unwrap() {
            lost.extend(if let log::Read::Transaction(transaction) = read { Some(transaction) } else { None });
        }
        disk.fail_syncs(1);
        if log.sync().is_err() {
            self.bench.writer.repair().unwrap();
            lost.append(&mut self.again);
            self.again = lost;
        }
        disk.fail_syncs(0);
    }

    /// So many transactions that were taken back come again.
    pub(super) fn comes_again(&mut self, count: usize) {
        let count = count.min(self.again.len());
        for transaction in self.again.drain(..count) {
            self.bench.writer.append(&transaction).unwrap();
        }
    }
}

/// They were live from where the stream was, without what came again.
#[tokio::test]
async fn who_comes_while_something_is_taken_back_gets_it_when_it_comes_again_and_so_does_who_was_on_the_way() {
    let disk = DiscardingFiles::new();
    let mut past = Past::on(Arc::new(disk.clone()), |_| {}).await;
    for _ in 0..100 {
        past.commit(&[("owned", ALICE, "x")]);
    }
    past.goes_by().await;
    past.bench.log.sync().unwrap();
    let durable = past.bench.lsn;
    for _ in 0..100 {
        past.commit(&[("owned", ALICE, "x")]);
    }
    past.goes_by().await;
    let mut witness = Witness::default();
    let starts = [place(100, u32::MAX), place(durable, u32::MAX), place(durable + 500, u32::MAX)];
    let on_the_way = port_with(16 << 10);
    witness.slow.insert(on_the_way.id);
    past.bench.subscribe(&on_the_way, vec![since(1, "owned", starts[0])], ALICE).await;
    witness.until(&mut past.bench, "some rows", |w| w.of(&on_the_way).rows.len() > 3).await;
    past.takes_back(&disk).await;
    assert_eq!((past.bench.log.end().0, past.again.len()), (durable, 101));
    witness.let_go(None);
    let ports = [port(), port(), port()];
    for (port, start) in ports.iter().zip(starts) {
        past.bench.subscribe(port, vec![since(1, "owned", start)], ALICE).await;
    }
    let before = |w: &mut Witness| [&on_the_way, &ports[0]].iter().all(|port| w.of(port).rows.len() == 100);
    witness.until(&mut past.bench, "what is durable", before).await;
    let live = |w: &Witness| ports.iter().chain([&on_the_way]).map(|port| w.of(port).live).sum::<usize>();
    assert_eq!(live(&witness), 0, "they are where the log ends");
    past.comes_again(50);
    past.commit(&[("owned", ALICE, "x")]);
    let all: Vec<(Arc<Port>, Position)> = ports.into_iter().zip(starts).chain([(on_the_way, starts[0])]).collect();
    for (port, start) in &all {
        witness.owed.insert(port.id, past.owed(ALICE, &[since(1, "owned", *start)]));
    }
    let last = past.rows.last().unwrap().id.clone();
    let done = |w: &mut Witness| all.iter().all(|(port, _)| w.of(port).ids().last() == Some(&&*last));
    witness.until(&mut past.bench, "the last row", done).await;
    for (port, start) in &all {
        let seen = witness.of(port);
        assert_eq!(seen.ids(), Past::ids(&past.owed(ALICE, &[since(1, "owned", *start)])));
        assert!(seen.told.is_empty(), "{:?}", seen.told);
    }
    past.bench.stop().await;
}
